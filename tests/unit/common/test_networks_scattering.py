"""The fixed scattering transform: exact repetition, invariances, and what it cannot see."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional

from medfed.common.networks.scattering import TEXTURE_MAPS, Scattering, maps_for, morlet_bank


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Keep threads from waiting for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def front() -> Scattering:
    return Scattering()


def scans_of(count: int, size: int = 28, channels: int = 1) -> torch.Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(2))


def grating(angle: float, wave_number: float, size: int = 28) -> torch.Tensor:
    """Return one scan of parallel waves; ``angle`` is where they run, in radians."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    wave = torch.sin(wave_number * (x * math.cos(angle) + y * math.sin(angle)))
    return (0.5 + 0.4 * wave).expand(1, 1, size, size)


@pytest.mark.parametrize("batch", [1, 2, 7, 31, 32, 33, 70])
def test_outputs_are_the_same_to_the_bit_in_any_batch(front: Scattering, batch: int) -> None:
    scans = scans_of(70)

    parts = torch.cat([front(part) for part in torch.split(scans, batch)])

    assert torch.equal(parts, front(scans))


@pytest.mark.parametrize(("size", "channels"), [(28, 3), (45, 1), (224, 1)])
def test_outputs_are_the_same_to_the_bit_at_any_place_in_the_batch(
    front: Scattering, size: int, channels: int
) -> None:
    scans = scans_of(5, size, channels)

    assert torch.equal(front(scans.flip(0)).flip(0), front(scans))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [28, 29, 30, 31, 64, 100])
def test_any_size_gives_seven_by_seven_maps(front: Scattering, size: int, channels: int) -> None:
    maps = front(scans_of(2, size, channels))

    assert maps.shape == (2, maps_for(channels), 7, 7)
    assert maps.dtype == torch.float32
    assert maps.isfinite().all()


def test_an_empty_batch_gives_an_empty_result(front: Scattering) -> None:
    assert front(torch.zeros(0, 3, 28, 28)).shape == (0, 83, 7, 7)  # 81 of texture, 2 of colour


def by_definition(scan: torch.Tensor) -> torch.Tensor:
    """Return the maps ``(81, 7, 7)`` of one 28×28 scan, one wavelet after the other."""

    def response(plane: torch.Tensor, scale: int, orientation: int, step: int) -> torch.Tensor:
        bank = morlet_bank(scale).double()[:, 0]
        reach = 3 * 2**scale
        padded = functional.pad(plane[None], (reach,) * 4, mode="reflect")[0]
        windows = padded.unfold(0, 2 * reach + 1, step).unfold(1, 2 * reach + 1, step)
        real = (windows * bank[orientation]).sum((2, 3))
        imaginary = (windows * bank[8 + orientation]).sum((2, 3))
        return torch.hypot(real, imaginary)

    turns = range(8)
    fine = [response(scan, 0, turn, step=1) for turn in turns]
    coarse = [response(scan, 1, turn, step=2) for turn in turns]
    second = [response(plane, 1, turn, step=2) for plane in fine for turn in turns]
    maps = [
        plane.reshape(7, len(plane) // 7, 7, len(plane) // 7).mean((1, 3))
        for plane in (scan, *fine, *coarse, *second)
    ]
    groups = torch.stack(maps).reshape(27, 147)
    groups = groups - groups.mean(1, keepdim=True)
    return (groups / (groups.square().mean(1, keepdim=True) + 1e-5).sqrt()).reshape(81, 7, 7)


def test_the_transform_is_the_one_defined(front: Scattering) -> None:
    scan = scans_of(1)

    expected = by_definition(scan[0, 0].double()).float()

    torch.testing.assert_close(front(scan)[0], expected, atol=1e-3, rtol=0)


def test_a_grey_scan_in_three_channels_has_the_same_texture_and_no_colour(
    front: Scattering,
) -> None:
    grey = scans_of(2)

    maps = front(grey.expand(-1, 3, -1, -1))

    torch.testing.assert_close(maps[:, :TEXTURE_MAPS], front(grey), atol=1e-3, rtol=0)
    torch.testing.assert_close(maps[:, TEXTURE_MAPS:], torch.zeros(2, 2, 7, 7), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("channel", "blue_difference", "red_difference"),
    # BT.601: 16 · 0.564 · (blue - brightness) and 16 · 0.713 · (red - brightness) of a pure colour
    [(0, -2.698, 7.997), (1, -5.297, -6.696), (2, 7.995, -1.301)],
)
def test_pure_colours_are_told_apart_by_the_two_differences(
    front: Scattering, channel: int, blue_difference: float, red_difference: float
) -> None:
    scan = torch.zeros(1, 3, 28, 28)
    scan[:, channel] = 1.0

    colour = front(scan)[0, TEXTURE_MAPS:].mean((1, 2))

    assert colour.tolist() == pytest.approx([blue_difference, red_difference], abs=2e-3)


def test_three_maps_at_a_time_have_mean_zero_and_variance_one_in_each_scan(
    front: Scattering,
) -> None:
    # twenty times the contrast, so that the 1e-5 GroupNorm adds to each variance does not show
    groups = front(20 * scans_of(4)).reshape(4, 27, -1)

    torch.testing.assert_close(groups.mean(2), torch.zeros(4, 27), atol=1e-5, rtol=0)
    torch.testing.assert_close(groups.var(2, correction=0), torch.ones(4, 27), atol=0.01, rtol=0)


def test_a_scan_of_nan_spoils_itself_only(front: Scattering) -> None:
    scans = scans_of(3)
    spoiled = scans.clone()
    spoiled[1] = torch.nan

    maps = front(spoiled)

    assert maps[1].isnan().all()
    assert torch.equal(maps[[0, 2]], front(scans)[[0, 2]])


def test_the_scan_itself_is_not_changed(front: Scattering) -> None:
    scans = scans_of(2)
    before = scans.clone()

    front(scans)

    assert torch.equal(scans, before)


def test_a_gradient_reaches_the_scan_even_where_it_is_blank(front: Scattering) -> None:
    scans = torch.cat([scans_of(1), torch.zeros(1, 1, 28, 28)]).requires_grad_()

    torch.autograd.backward(front(scans).square().sum())

    assert scans.grad is not None
    assert scans.grad.isfinite().all()
    assert scans.grad[0].abs().sum() > 0


def test_autocast_does_not_touch_the_transform(front: Scattering) -> None:
    scans = scans_of(2)
    expected = front(scans)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(front(scans), expected)


def test_double_precision_gives_the_same_maps_to_rounding(front: Scattering) -> None:
    scans = scans_of(2)

    exact = Scattering().double()(scans.double())

    assert exact.dtype == torch.float64
    torch.testing.assert_close(front(scans), exact.float(), atol=1e-3, rtol=0)


def test_the_transform_adds_nothing_to_the_weights_that_travel(front: Scattering) -> None:
    assert list(front.parameters()) == []
    assert front.state_dict() == {}


@pytest.mark.parametrize("scale", [0, 1])
def test_wavelets_do_not_respond_to_even_grey(scale: int) -> None:
    sums = morlet_bank(scale).double().sum((1, 2, 3))

    assert sums.abs().max() < 1e-6  # float32 rounding of weights below 0.25


@pytest.mark.parametrize("scale", [0, 1])
@pytest.mark.parametrize("orientation", range(8))
def test_a_wavelet_responds_most_to_waves_of_its_own_orientation(
    scale: int, orientation: int
) -> None:
    wave_number = 3 * math.pi / 4 / 2**scale
    scan = grating(orientation * math.pi / 8, wave_number)

    real, imaginary = functional.conv2d(scan, morlet_bank(scale)).chunk(2, dim=1)
    response = torch.hypot(real, imaginary).mean((0, 2, 3))

    assert int(response.argmax()) == orientation


def test_the_fine_wavelet_at_its_centre_is_worked_by_hand() -> None:
    centre = morlet_bank(0)[0, 0, 3, 3]

    # (1 − β) / (2π·0.8²), β = Σ e^{iξx − x²/2σ²} / Σ e^{−x²/2σ²} over x = −3…3, ξ = 3π/4:
    # (1 + 2·(0.457833·cos ξ + 0.043937·cos 2ξ + 0.000884·cos 3ξ)) / 2.005309
    beta = (1 + 2 * (0.457833 * -0.707107 + 0.0 + 0.000884 * 0.707107)) / 2.005309
    assert float(centre) == pytest.approx((1 - beta) / (2 * math.pi * 0.64), rel=1e-5)
