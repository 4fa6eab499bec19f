"""From OCT volumes to patches: the stages before the model, in NumPy and SciPy only."""

__version__ = "0.1.0"
