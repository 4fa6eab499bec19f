"""From OCT volumes to patches: the stages before the model, in NumPy and SciPy only."""
