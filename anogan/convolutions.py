"""The networks' convolutions, as matrix products where that is faster.

A CPU convolves patch by patch. Where a layer has many weights and few positions, 4x4 in the
published networks, it waits for weights that outgrow its cache; as one product over the whole batch
they are read once, which makes such a layer two to five times as fast, forwards and backwards. The
products take copies of the input, so elsewhere PyTorch's own convolutions stay.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

WEIGHTS_PER_POSITION = 2**16  # from which on a product is faster
KERNEL, STRIDE, PADDING = 5, 2, 2


class Convolution(nn.Conv2d):
    """5x5 with stride 2: (n, c, h, w) -> (n, o, h / 2, w / 2)."""

    def __init__(self, channels: int, outputs: int, bias: bool) -> None:
        super().__init__(channels, outputs, KERNEL, STRIDE, PADDING, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature map of x."""
        weight = self.weight  # may be computed, by spectral normalisation
        if not _is_worthwhile(weight, x, x.shape[2] * x.shape[3] // STRIDE**2):
            return self._conv_forward(x, weight, self.bias)
        windows = _Gather.apply(_rounded(x).permute(0, 2, 3, 1)).flatten(3)
        product = weight.permute(0, 2, 3, 1).flatten(1)  # (o, 25 c), as it lies in memory
        return nn.functional.linear(windows, product, self.bias).permute(0, 3, 1, 2)


class TransposedConvolution(nn.ConvTranspose2d):
    """5x5 with stride 2, the other way round: (n, c, h, w) -> (n, o, 2 h, 2 w)."""

    def __init__(self, channels: int, outputs: int, bias: bool) -> None:
        super().__init__(channels, outputs, KERNEL, STRIDE, PADDING, output_padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature map of x."""
        if not _is_worthwhile(self.weight, x, x.shape[2] * x.shape[3]):
            return super().forward(x)
        weight = self.weight.permute(0, 2, 3, 1).flatten(1)  # (c, 25 o), as it lies in memory
        windows = (x.permute(0, 2, 3, 1) @ weight).unflatten(3, (KERNEL, KERNEL, -1))
        sums = _Scatter.apply(windows)
        return (sums if self.bias is None else sums + self.bias).permute(0, 3, 1, 2)


class Projection(nn.ConvTranspose2d):
    """A transposed convolution of one pixel, which is a product: (n, c) -> (n, o, size, size)."""

    def __init__(self, channels: int, outputs: int, size: int, bias: bool) -> None:
        super().__init__(channels, outputs, size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature map of x."""
        weight = self.weight.permute(0, 2, 3, 1).flatten(1)  # (c, size * size * o)
        made = (x @ weight).unflatten(1, (*self.kernel_size, -1))
        return (made if self.bias is None else made + self.bias).permute(0, 3, 1, 2)


def _is_worthwhile(weight: Tensor, x: Tensor, positions: int) -> bool:
    """Tell whether the product is faster. A GPU has no need of it, nor has a single patch."""
    many_weights = weight.numel() > WEIGHTS_PER_POSITION * positions
    return many_weights and weight.device.type == "cpu" and len(x) > 1


def _rounded(x: Tensor) -> Tensor:
    """Return x in the type that products are computed in, so that less is copied."""
    if torch.is_autocast_enabled(x.device.type):
        return x.to(torch.get_autocast_dtype(x.device.type))
    return x


class _Gather(torch.autograd.Function):
    """The 5x5 windows of images: (n, 2 h, 2 w, c) -> (n, h, w, 5, 5, c)."""

    @staticmethod
    def forward(ctx: object, images: Tensor) -> Tensor:
        padded = pad(images, (0, 0, PADDING, 1, PADDING, 1))
        windows = padded.unfold(1, KERNEL, STRIDE).unfold(2, KERNEL, STRIDE)
        return windows.permute(0, 1, 2, 4, 5, 3).contiguous()

    @staticmethod
    def backward(ctx: object, windows: Tensor) -> Tensor:
        return _Scatter.apply(windows)


class _Scatter(torch.autograd.Function):
    """The adjoint: sums of overlapping windows, (n, h, w, 5, 5, c) -> (n, 2 h, 2 w, c)."""

    @staticmethod
    def forward(ctx: object, windows: Tensor) -> Tensor:
        n, h, w, _, _, c = windows.shape
        padded = windows.new_zeros(n, STRIDE * h + 3, STRIDE * w + 3, c, dtype=torch.float32)
        for i in range(KERNEL):
            for j in range(KERNEL):
                places = padded[:, i : i + STRIDE * h : STRIDE, j : j + STRIDE * w : STRIDE]
                places += windows[:, :, :, i, j]
        return padded[:, PADDING:-1, PADDING:-1].to(windows.dtype).contiguous()

    @staticmethod
    def backward(ctx: object, images: Tensor) -> Tensor:
        return _Gather.apply(images)
