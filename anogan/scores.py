"""What scores are made of: residuals, distances of features, and their weighted sum.

With x^ the rebuilt patch and f the activations of a discriminator D, per patch:

    R  = sum |x - x^|             L2 = sqrt(sum (x - x^)^2)
    D  = sum |f(x) - f(x^)|       A  = (1 - lambda) R + lambda D      (Schlegl et al. 2017)
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from anogan.networks import Discriminator
from preprocessing.errors import InputError

WEIGHTINGS = {
    "convex": lambda weight, residual, other: (1 - weight) * residual + weight * other,
    "additive": lambda weight, residual, other: weight * residual + other,
}
DISTANCES = {"l1": torch.abs, "squared": torch.square}
ALL_LAYERS = "all"

# (D, patches x) -> a function of the rebuilt patches (n, 1, h, w) that returns the second term of A
# (n,); what depends on x alone is computed once
Discrimination = Callable[[Discriminator, Tensor], Callable[[Tensor], Tensor]]


@dataclass(frozen=True)
class ScoreSettings:
    """How A is composed.

    Attributes
    ----------
    weight : lambda.
    weighting : "convex" is (1 - lambda) R + lambda D, as published; "additive" is lambda R + D.
    feature_layer : the convolution of D that f is taken from, counted from 1; 0 is the last, "all"
        the mean of D over every layer.
    feature_distance : "l1" as published; "squared" sums (f(x) - f(x^))^2.
    """

    weight: float = 0.1
    weighting: str = "convex"
    feature_layer: int | str = 0
    feature_distance: str = "l1"

    @classmethod
    def of(cls, options: argparse.Namespace) -> Self:
        """Return the settings that were given on the command line."""
        return cls(**{field.name: getattr(options, field.name) for field in fields(cls)})

    def weigh(self, residual: Tensor, other: Tensor) -> Tensor:
        """Return A (n,) of R and D, or of what stands for D."""
        return WEIGHTINGS[self.weighting](self.weight, residual, other)


def add_score_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare an option for each of the settings."""
    default = ScoreSettings()
    group = parser.add_argument_group("composition of A (anogan, gan_r, f_anogan_refined and acae)")
    group.add_argument("--weight", type=float, default=default.weight, help="lambda")
    group.add_argument(
        "--weighting",
        choices=list(WEIGHTINGS),
        default=default.weighting,
        help="convex: (1 - lambda) R + lambda D; additive: lambda R + D",
    )
    group.add_argument(
        "--feature-layer",
        type=lambda text: text if text == ALL_LAYERS else int(text),
        metavar="{0,1,...,all}",
        default=default.feature_layer,
        help="convolution of the discriminator that features are taken from; 0 is the last",
    )
    group.add_argument(
        "--feature-distance", choices=list(DISTANCES), default=default.feature_distance
    )


def sum_per_patch(values: Tensor) -> Tensor:
    """Return the sums (n,) of values (n, c, h, w), in fp32."""
    return values.sum(dim=(1, 2, 3), dtype=torch.float32)


def residual_score(x: Tensor, rebuilt: Tensor) -> Tensor:
    """Return R (n,) of patches x and what they were rebuilt as (n, 1, h, w)."""
    return sum_per_patch((x - rebuilt).abs())


def residual_scores(x: Tensor, rebuilt: Tensor) -> Tensor:
    """Return L2 and R, (n, 2), of patches x and what they were rebuilt as (n, 1, h, w)."""
    l2 = sum_per_patch((x - rebuilt).square()).sqrt()
    return torch.stack([l2, residual_score(x, rebuilt)], dim=1)


def feature_matching(settings: ScoreSettings, depth: int) -> Discrimination:
    """Return what computes D, with a discriminator of `depth` layers, or the variant asked for.

    Raises InputError when there is no such layer.
    """
    if settings.feature_layer not in (ALL_LAYERS, *range(depth + 1)):
        raise InputError(
            f"feature_layer is {settings.feature_layer}; the discriminator has the layers "
            f"1 to {depth} (0 means the last, all every one)"
        )
    distance = DISTANCES[settings.feature_distance]

    def features(discriminator: Discriminator, x: Tensor) -> list[Tensor]:
        if settings.feature_layer == ALL_LAYERS:
            return discriminator.all_features(x, depth)
        return [discriminator.features(x, settings.feature_layer or depth)]

    def discrimination(discriminator: Discriminator, x: Tensor) -> Callable[[Tensor], Tensor]:
        f_x = features(discriminator, x)

        def of(rebuilt: Tensor) -> Tensor:
            pairs = zip(f_x, features(discriminator, rebuilt), strict=True)
            return sum(sum_per_patch(distance(a - b)) for a, b in pairs) / len(f_x)

        return of

    return discrimination
