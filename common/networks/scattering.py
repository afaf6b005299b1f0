"""``scatter-small``: a fixed scattering transform under one small trained convolution.

The transform tells textures apart without learning anything from anyone's scans: it takes the
modulus of the scan filtered with Morlet wavelets, again of that, and averages. Having no
parameters, it costs no privacy and needs computing only once per scan; what is left to train
is small, and small models suffer least from the noise of private training.

Notation, as in the source:
    J   number of scales, 2: wavelets of 2^0 and 2^1
    L   number of orientations, 8, over half a turn
    U   modulus of a filtered map, before averaging; S the averaged maps

A colour scan is scattered in its brightness only; of its colour the averages are kept. The
texture of three colour channels is nearly the same three times over, and every further map
costs weights that private training must put noise on: on the blood-cell study at epsilon 8
this gives a macro AUROC of .99 where scattering each channel gives .97.

Source:
    Bruna, Mallat. Invariant Scattering Convolution Networks. IEEE TPAMI 2013.
    https://arxiv.org/abs/1203.1513. Here the averages are taken over boxes, not Gaussians.
    Tramer, Boneh. Differentially Private Learning Needs Better Features (or Much More Data).
    ICLR 2021. https://arxiv.org/abs/2011.11660 (scattering with GroupNorm under private
    training).
    ITU-R Recommendation BT.601 (brightness and the two colour differences).
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from medfed.common.networks.network import Network

ORIENTATIONS = 8  # L
TEXTURE_MAPS = 1 + 2 * ORIENTATIONS + ORIENTATIONS * ORIENTATIONS  # orders 0, 1 and 2: 81
COLOUR_MAPS = 2  # blue and red difference
SIDE = 7  # cells a side of the averaged maps: 4×4 pixels each at 28×28
_GROUPS = 27  # of three texture maps each
_COLOUR_GAIN = 16.0  # colours of tissue differ by some 1/16; so a map varies by about 1
_BRIGHTNESS = (0.299, 0.587, 0.114)  # of red, green and blue (BT.601)
_BLUE_SHARE, _RED_SHARE = 0.564, 0.713  # bring the differences to [-0.5, 0.5] (BT.601)
_CHUNK_PIXELS = 32 * 28 * 28  # input pixels worked on at once, which bounds the working memory
_SMALLEST_MODULUS = 1e-6  # keeps the gradient of the modulus finite where a map is 0


def maps_for(channels: int) -> int:
    """Number of maps of a scan with 1 or 3 channels: 81, or 83."""
    return TEXTURE_MAPS if channels == 1 else TEXTURE_MAPS + COLOUR_MAPS


def scatter_small(*, channels: int, size: int, outputs: int) -> Network:
    """Build the scattering transform and the small network above it.

    Args:
        channels: Input channels, 1 or 3.
        size: Side of the input, in pixels, at least 28.
        outputs: Number of logits.

    Returns:
        A network whose front is ``Scattering`` and whose body, the same for every size, is
        conv32 - GroupNorm(8) - ReLU - dense; PyTorch's default initial weights.
    """
    body = nn.Sequential(
        nn.Conv2d(maps_for(channels), 32, kernel_size=3, padding=1),
        nn.GroupNorm(8, 32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * SIDE * SIDE, outputs),
    )
    return Network(body, front=Scattering())


class Scattering(nn.Module):
    """Two orders of wavelet moduli, averaged to 7×7 and normalised within each scan.

    Takes scans ``(scans, channels, height, width)``, float32, 1 or 3 channels (red, green,
    blue), at least 28 pixels a side, and gives ``(scans, 81 or 83, 7, 7)``, float32: of the
    brightness the averaged scan, 16 maps of order 1 and 64 of order 2, each three of them
    brought to mean 0 and variance 1 (GroupNorm without parameters); of a colour scan also the
    averaged blue and red difference, times 16. Wavelets are 1 to 8 pixels wide whatever the
    size, so on large scans they see fine texture only.

    Guarantee:
        No parameters and no state. A scan's output depends on no other scan, and on the CPU
        it is the same to the bit whatever batch the scan comes in: work is done in chunks of
        one fixed shape, the last one filled up with zeros. It is float32 also under autocast
        (float64 after ``.double()``, for checks).
        Working memory does not grow with the batch. A scan that holds NaN spoils its own output
        only. The gradient with respect to the scans exists.
    """

    fine: torch.Tensor
    coarse: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("fine", morlet_bank(0), persistent=False)
        self.register_buffer("coarse", morlet_bank(1), persistent=False)

    def forward(self, scans: torch.Tensor) -> torch.Tensor:
        """Return the maps ``(scans, 81, 7, 7)``, or with colour ``(scans, 83, 7, 7)``."""
        scans = scans.to(self.fine.dtype)
        chunk = max(1, _CHUNK_PIXELS // (scans.shape[-2] * scans.shape[-1]))
        channels = scans.shape[1]
        maps = [scans.new_empty(0, maps_for(channels), SIDE, SIDE)]  # no scans have a shape too
        with torch.autocast(scans.device.type, enabled=False):
            for start in range(0, len(scans), chunk):
                part = scans[start : start + chunk]
                filled = functional.pad(part, (0, 0) * 3 + (0, chunk - len(part)))
                made = self._scatter(filled) if channels == 1 else self._with_colour(filled)
                maps.append(made[: len(part)])
        return torch.cat(maps)

    def _with_colour(self, scans: torch.Tensor) -> torch.Tensor:
        """Return the maps ``(scans, 83, 7, 7)`` of scans in red, green and blue."""
        red, green, blue = torch.split(scans, 1, dim=1)
        r, g, b = _BRIGHTNESS
        brightness = r * red + g * green + b * blue
        differences = [_BLUE_SHARE * (blue - brightness), _RED_SHARE * (red - brightness)]
        colour = functional.adaptive_avg_pool2d(torch.cat(differences, dim=1), SIDE)
        return torch.cat([self._scatter(brightness), _COLOUR_GAIN * colour], dim=1)

    def _scatter(self, planes: torch.Tensor) -> torch.Tensor:
        """Return the normalised maps ``(planes, 81, 7, 7)`` of ``(planes, 1, height, width)``."""
        finer = _modulus(planes, self.fine, stride=1)
        coarser = _modulus(planes, self.coarse, stride=2)
        second = _modulus(finer.flatten(0, 1).unsqueeze(1), self.coarse, stride=2)
        second = second.reshape(len(planes), -1, *second.shape[2:])
        # In this order GroupNorm's three maps are mostly of one order and scale, so of one size.
        orders = (planes, finer, coarser, second)
        maps = torch.cat([functional.adaptive_avg_pool2d(order, SIDE) for order in orders], dim=1)
        return functional.group_norm(maps, _GROUPS)


def _modulus(planes: torch.Tensor, bank: torch.Tensor, stride: int) -> torch.Tensor:
    """Return U, ``(planes, 8, …)``: the modulus of planes ``(planes, 1, …)`` filtered with a bank.

    Stride 2 loses next to nothing after a coarse wavelet, whose output holds no finer detail.
    """
    reach = bank.shape[-1] // 2
    padded = functional.pad(planes, (reach,) * 4, mode="reflect")
    real, imaginary = functional.conv2d(padded, bank, stride=stride).chunk(2, dim=1)
    return (real.square() + imaginary.square() + _SMALLEST_MODULUS**2).sqrt()


def morlet_bank(scale: int) -> torch.Tensor:
    """Return the Morlet wavelets of one scale, ``(16, 1, side, side)``, float32.

    Args:
        scale: ``j``: the wavelets are 2^j times as wide as those of scale 0, whose Gaussian
            has a standard deviation of 0.8 pixels and whose wave turns 3π/4 per pixel.

    Returns:
        The real parts of 8 orientations, then their imaginary parts.

    Guarantee:
        Each filter sums to 0 to within rounding, so a scan of one grey gives no response.

    Source:
        arXiv:1203.1513, the Morlet wavelet: ``ψ(u) = α (e^{iu·ξ} − β) e^{−|u|²/2σ²}``.
    """
    width, reach = 0.8 * 2**scale, 3 * 2**scale
    wave_number = 3 * math.pi / 4 / 2**scale
    axis = torch.arange(-reach, reach + 1, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    envelope = torch.exp(-(x.square() + y.square()) / (2 * width**2))
    angles = torch.arange(ORIENTATIONS, dtype=torch.float64) * (math.pi / ORIENTATIONS)
    phase = wave_number * (
        x * torch.cos(angles)[:, None, None] + y * torch.sin(angles)[:, None, None]
    )
    wave = torch.polar(torch.ones_like(phase), phase)
    offset = (wave * envelope).sum((1, 2), keepdim=True) / envelope.sum()
    wavelets = (wave - offset) * envelope / (2 * math.pi * width**2)
    return torch.cat([wavelets.real, wavelets.imag]).unsqueeze(1).float()
