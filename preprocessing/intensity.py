"""Between the power of the signal and what a device shows, as the Heidelberg Spectralis does it.

gray = (ln(power + OFFSET) + SHIFT) / RANGE, which spreads about 36 dB over black to white.
"""

import numpy as np

OFFSET, SHIFT, RANGE = 2.44e-4, 8.3, 8.285


def to_display(power: np.ndarray) -> np.ndarray:
    """Return gray values in [0, 1], float32, of a linear signal."""
    gray = (np.log(np.maximum(power, 0) + np.float32(OFFSET)) + SHIFT) / RANGE
    return np.clip(gray, 0, 1).astype(np.float32)


def to_power(gray: np.ndarray) -> np.ndarray:
    """Return the linear signal that is shown as `gray` in [0, 1]."""
    return np.maximum(np.exp(RANGE * gray - SHIFT) - OFFSET, 0)
