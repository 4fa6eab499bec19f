"""What a stage computes on."""

import argparse

import pytest
import torch

from anogan.device import prepare_device
from preprocessing.errors import InputError


def options(gpus: int) -> argparse.Namespace:
    return argparse.Namespace(threads=1, gpus=gpus)


def test_the_cpu_can_stand_in_for_gpus_that_are_not_there(monkeypatch):
    monkeypatch.setenv("ANOGAN_DEVICE", "cpu")
    assert prepare_device(options(gpus=2)) == torch.device("cpu")


def test_nothing_else_can(monkeypatch):
    monkeypatch.setenv("ANOGAN_DEVICE", "cuda")
    with pytest.raises(InputError, match="ANOGAN_DEVICE=cuda: it can only be cpu"):
        prepare_device(options(gpus=0))
