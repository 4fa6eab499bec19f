"""Heat maps: their file, their colours, and how they look on a scan."""
