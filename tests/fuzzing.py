"""What the tests of damaged files share."""

import time
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from preprocessing.errors import InputError
from preprocessing.readers import read_vendor_volume
from preprocessing.volume import Volume

MAX_SECONDS = 5
MAX_MB = 100

fuzz = settings(
    max_examples=150,
    deadline=2000,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def check_consistent(volume: Volume) -> None:
    n_b, _, n_x = volume.data.shape
    assert volume.data.dtype == np.float32
    assert np.isfinite(volume.data).all()
    assert volume.bscan_lines_mm is None or volume.bscan_lines_mm.shape == (n_b, 4)
    assert all(layer.shape == (n_b, n_x) for layer in volume.vendor_layers.values())


def read_or_refuse(path: Path) -> Volume | None:
    """Read `path`; anything but a consistent volume or one InputError fails the test."""
    try:
        volume = read_vendor_volume(path)
    except InputError as error:
        assert str(path.parent) in str(error)
        return None
    check_consistent(volume)
    return volume


def refused(path, message=None):
    """Read `path`, which must be refused at once and in little memory; return the error."""
    tracemalloc.start()
    begin = time.perf_counter()
    try:
        with warnings.catch_warnings(), pytest.raises(InputError, match=message) as error:
            warnings.simplefilter("error")
            read_vendor_volume(path)
        assert time.perf_counter() - begin < MAX_SECONDS
        assert tracemalloc.get_traced_memory()[1] < MAX_MB * 1e6
    finally:
        tracemalloc.stop()
    assert str(path.parent) in str(error.value)
    return str(error.value)
