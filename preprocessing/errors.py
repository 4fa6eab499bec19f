"""The one exception that a user is meant to read."""


class InputError(ValueError):
    """Something a user can mend: the message names the file, the cause and the remedy."""
