"""The report page: what it says, shows and leaves out."""
