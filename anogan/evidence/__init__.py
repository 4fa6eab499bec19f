"""From scores to metrics with intervals: what the stage `evaluate` is made of."""
