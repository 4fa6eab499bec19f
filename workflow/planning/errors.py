"""The error of a plan that cannot be carried out."""


class PlanningError(ValueError):
    """One sentence that names the file, the place in it and the remedy."""
