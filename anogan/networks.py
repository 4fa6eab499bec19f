"""The DCGAN (Radford et al. 2016, arXiv 1511.06434) of AnoGAN (Schlegl et al. 2017, 1703.05921).

All convolutions are 5x5 with stride 2. With the published channels 512-256-128-64 and a latent
size of 100, a 64x64 patch costs 159.7 M multiply-accumulates in the generator and 158.9 M in the
discriminator's features. Shapes in comments: n patches, c channels, height, width.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils import fusion

from anogan.convolutions import Convolution, Projection, TransposedConvolution

NORMS = {
    "batch": nn.BatchNorm2d,
    "layer": lambda channels: nn.GroupNorm(1, channels),
    "none": lambda channels: nn.Identity(),
}
FIRST_SIZE = 4  # height and width of the coarsest feature map
LEAK = 0.2


def check_architecture(channels: tuple[int, ...], patch_size: int) -> None:
    """Raise ValueError unless the channels (coarse to fine) lead to `patch_size` pixels."""
    reached = FIRST_SIZE * 2 ** len(channels)
    if reached != patch_size:
        raise ValueError(
            f"{len(channels)} channel numbers make patches of {reached} pixels, not {patch_size}; "
            "patches of 32, 64 or 128 pixels need 3, 4 or 5 channel numbers"
        )


class Generator(nn.Module):
    """z (n, latent) uniform in [-1, 1] -> patch (n, 1, size, size) in [-1, 1].

    `channels` go from coarse to fine, as published: (512, 256, 128, 64).
    """

    def __init__(self, channels: tuple[int, ...], latent: int) -> None:
        super().__init__()
        self.latent = latent
        # (n, latent) -> (n, channels[0], 4, 4)
        self.project = Projection(latent, channels[0], FIRST_SIZE, bias=False)
        self.project_norm = nn.BatchNorm2d(channels[0])
        widths = [*channels, 1]
        last = len(channels) - 1
        # each doubles height and width: 4 -> 8 -> 16 -> 32 -> 64
        self.up = nn.ModuleList(
            TransposedConvolution(a, b, bias=i == last) for i, (a, b) in enumerate(pairwise(widths))
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for c in channels[1:])
        self.apply(_initialise)

    def forward(self, z: Tensor) -> Tensor:
        """Return the patches of z (n, latent)."""
        h = torch.relu(self.project_norm(self.project(z)))
        for up, norm in zip(self.up, self.norms, strict=False):
            h = torch.relu(norm(up(h)))
        return torch.tanh(self.up[-1](h))


class ConvolutionStack(nn.Module):
    """What discriminator and encoder share: patch (n, 1, size, size) -> features (n, c, 4, 4).

    `channels` as of the generator. `norm` follows every convolution but the first, as in DCGAN:
    "batch"; "layer" (for a gradient penalty, which is of each patch by itself); or "none".
    """

    def __init__(self, channels: tuple[int, ...], norm: str = "batch") -> None:
        super().__init__()
        widths = [1, *reversed(channels)]
        # each halves height and width: 64 -> 32 -> 16 -> 8 -> 4
        self.down = nn.ModuleList(
            Convolution(a, b, bias=i == 0 or norm == "none")
            for i, (a, b) in enumerate(pairwise(widths))
        )
        self.norms = nn.ModuleList(
            NORMS["none" if i == 0 else norm](c) for i, c in enumerate(widths[1:])
        )

    def features(self, x: Tensor, layer: int) -> Tensor:
        """Return f(x): the activations (n, c, h, w) of convolution `layer`, counted from 1."""
        return self.all_features(x, layer)[-1]

    def all_features(self, x: Tensor, layer: int) -> list[Tensor]:
        """Return the activations (n, c, h, w) of the convolutions 1 to `layer`."""
        found = []
        for conv, norm in zip(self.down[:layer], self.norms[:layer], strict=True):
            x = nn.functional.leaky_relu(norm(conv(x)), LEAK)
            found.append(x)
        return found


class Discriminator(ConvolutionStack):
    """patch (n, 1, size, size) -> logit (n,), high for real; `channels` as of the generator."""

    def __init__(self, channels: tuple[int, ...], norm: str = "batch") -> None:
        super().__init__(channels, norm)
        self.head = nn.Conv2d(channels[0], 1, FIRST_SIZE)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (n,) of patches x."""
        return self.judge(self.features(x, len(self.down)))

    def judge(self, features: Tensor) -> Tensor:
        """Return the logits (n,) from the last convolution's activations (n, c, 4, 4)."""
        return self.head(features).flatten()


class Encoder(ConvolutionStack):
    """patch (n, 1, size, size) -> z (n, latent); `channels` as of the generator."""

    def __init__(self, channels: tuple[int, ...], latent: int) -> None:
        super().__init__(channels)
        self.head = nn.Conv2d(channels[0], latent, FIRST_SIZE)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Return the codes (n, latent) of patches x."""
        return self.head(self.features(x, len(self.down))).flatten(1)


def _initialise(module: nn.Module) -> None:
    """Draw weights as DCGAN does: N(0, 0.02), batch-norm scales N(1, 0.02)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def freeze(*networks: Generator | ConvolutionStack) -> None:
    """Prepare networks, in place, for scoring: eval mode, no gradients, batch norm folded in.

    In eval mode batch norm is a fixed scale and shift, which the convolution before it can carry:
    the same function with less work, and no statistics that a batch could move.
    """
    fold = fusion.fuse_conv_bn_eval
    for network in networks:
        network.eval().requires_grad_(False)
        transposed = isinstance(network, Generator)
        convolutions = network.up if transposed else network.down
        if transposed:
            network.project = fold(network.project, network.project_norm, transpose=True)
            network.project_norm = nn.Identity()
        for i, norm in enumerate(network.norms):
            if isinstance(norm, nn.BatchNorm2d):
                convolutions[i] = fold(convolutions[i], norm, transpose=transposed)
                network.norms[i] = nn.Identity()
        network.requires_grad_(False).to(memory_format=torch.channels_last)
