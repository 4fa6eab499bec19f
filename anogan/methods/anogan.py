"""AnoGAN: z mapped by feature matching, scored by the same loss (Schlegl et al. 2017)."""

import argparse

import torch

from anogan.mapping import Mapper, SearchSettings
from anogan.model import Architecture, TrainedModel
from anogan.scores import feature_matching

MODEL = "gan"
SCORES = ("A", "R", "D")
HEEDS = ("search", "composition")  # options of `score`


def scorer(
    model: TrainedModel, options: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> Mapper:
    """Return what maps and scores patches."""
    depth = len(Architecture.of(model).channels)
    return Mapper.of(model, options, dtype, feature_matching(SearchSettings.of(options), depth))
