"""f-AnoGAN refined: AnoGAN's search for z, begun at the encoding of the patch and short."""

import argparse

import torch

from anogan.mapping import Mapper
from anogan.model import Architecture, TrainedModel
from anogan.scores import ScoreSettings, feature_matching

MODEL = "encoder"
SCORES = ("A", "R", "D")
HEEDS = ("refinement", "composition")  # options of `score`


def scorer(
    model: TrainedModel, options: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> Mapper:
    """Return what maps and scores patches."""
    depth = len(Architecture.of(model).channels)
    matching = feature_matching(ScoreSettings.of(options), depth)
    return Mapper.refining(model, options, dtype, matching)
