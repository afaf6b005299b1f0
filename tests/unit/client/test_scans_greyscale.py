from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from medfed.client.scans import greyscale
from medfed.client.scans.greyscale import each, scale_of, shown_values, windowed
from medfed.client.scans.guards import checked_header
from medfed.client.scans.projection import Picture
from medfed.client.scans.refusals import Reason, RefusedScanError
from tests.support.scans import scan_object, study_of

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def picture_of(stored: Any, dataset: Dataset, *, window: bool = True) -> Picture:
    header = checked_header(dataset)
    scans = study_of(scans="" if window else 'intensity = "stored"').scans
    return shown_values(stored, dataset, header, scale_of(dataset, header, scans))


def shown(pixels: Any, *, window: bool = True, **elements: Any) -> Any:
    return picture_of(pixels, scan_object(pixels, **elements), window=window).values


def item(**elements: Any) -> Dataset:
    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def lut(first: int, bits: int, data: list[int]) -> list[Dataset]:
    table = item(LUTDescriptor=[len(data), first, bits], LUTData=data)
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    return [table]


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("window", [True, False])
def test_without_transforms_the_range_of_the_stored_bits_becomes_0_to_1(
    bits: int, window: bool
) -> None:
    top = (1 << bits) - 1
    pixels = np.asarray([[0, 1], [top // 2, top]], dtype=np.uint16)

    values = shown(pixels, bits_stored=bits, window=window)

    assert values.tolist() == [[0.0, 1 / top], [(top // 2) / top, 1.0]]


def test_signed_values_range_from_the_lowest_to_the_highest() -> None:
    dataset = scan_object(np.zeros((1, 2), dtype=np.uint16), bits_stored=12)
    dataset.PixelRepresentation = 1
    stored = np.asarray([[-2048, 2047]], dtype=np.int16)  # the ends of 12 signed bits

    picture = picture_of(stored, dataset)

    assert picture.values.tolist() == [[0.0, 1.0]]


def test_eight_bits_give_to_the_bit_what_division_by_255_gives() -> None:
    assert np.array_equal(shown(RAMP), RAMP / 255.0)


def test_a_brighter_pixel_elsewhere_changes_nothing_here() -> None:
    dim, bright = np.full((4, 4), 100, np.uint8), np.full((4, 4), 100, np.uint8)
    bright[0, 0] = 255

    assert shown(dim)[1:].tolist() == shown(bright)[1:].tolist()


def test_the_linear_window_follows_the_standard_s_formula() -> None:
    # PS3.3 C.11.2.1.2.1, its note: centre 40, width 400: -160 and below are black, above 239
    # white; in between ((x - 39.5) / 399 + 0.5).
    x = np.asarray([-1000.0, -160.0, 39.5, 239.0, 1000.0])

    assert windowed(x, 40.0, 400.0).tolist() == pytest.approx([0.0, 0.0, 0.5, 1.0, 1.0])
    assert windowed(np.asarray([0.0]), 40.0, 400.0)[0] == pytest.approx((0 - 39.5) / 399 + 0.5)


def test_a_linear_window_of_width_one_is_a_step() -> None:
    # PS3.3 C.11.2.1.2.1: black up to c - 0.5, white above.
    assert windowed(np.asarray([99.0, 99.5, 99.6, 100.0]), 100.0, 1.0).tolist() == [0, 0, 1, 1]


def test_the_exact_window_reaches_from_half_a_width_below_to_half_above() -> None:
    x = np.asarray([-1.0, 0.0, 50.0, 100.0, 101.0])  # PS3.3 C.11.2.1.3.2

    assert windowed(x, 50.0, 100.0, "LINEAR_EXACT").tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]


def test_the_sigmoid_window_is_the_logistic_curve() -> None:
    # PS3.3 C.11.2.1.3.1: 1 / (1 + exp(-4 (x - c) / w)); at c + w/4 that is 1 / (1 + 1/e).
    x = np.asarray([50.0, 75.0, -1e9, 1e9])
    expected = [0.5, 1 / (1 + np.exp(-1)), 0.0, 1.0]

    assert windowed(x, 50.0, 100.0, "SIGMOID").tolist() == pytest.approx(expected)


def test_the_window_applies_after_the_rescale() -> None:
    values = shown(RAMP, RescaleSlope=2, RescaleIntercept=-100, WindowCenter=60.5, WindowWidth=101)

    # Output 2x - 100; the window spans 10 to 110, so stored 55 is black, 105 white, 80 the middle.
    assert values.reshape(-1)[[0, 55, 80, 105, 255]].tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]


def test_stored_intensity_leaves_the_window_out() -> None:
    values = shown(RAMP, window=False, WindowCenter=60, WindowWidth=10)

    assert np.array_equal(values, RAMP / 255.0)


def test_the_first_of_several_windows_is_taken() -> None:
    several = shown(RAMP, WindowCenter=[128, 10], WindowWidth=[256, 2])

    assert np.array_equal(several, shown(RAMP, WindowCenter=128, WindowWidth=256))


@pytest.mark.parametrize(
    "inverting", [{"colour_model": "MONOCHROME1"}, {"PresentationLUTShape": "INVERSE"}]
)
def test_inversion_comes_after_the_window(inverting: dict[str, Any]) -> None:
    window: dict[str, Any] = {"WindowCenter": 50, "WindowWidth": 20}

    inverted = shown(RAMP, **window, **inverting)

    assert np.array_equal(inverted, 1.0 - shown(RAMP, **window))


def test_a_presentation_shape_decides_over_the_photometric_interpretation() -> None:
    both = shown(RAMP, colour_model="MONOCHROME1", PresentationLUTShape="INVERSE")
    neither = shown(RAMP, colour_model="MONOCHROME1", PresentationLUTShape="IDENTITY")

    assert np.array_equal(both, 1.0 - RAMP / 255.0)  # inverted once, not twice
    assert np.array_equal(neither, RAMP / 255.0)


def test_a_modality_lut_maps_values_and_sets_the_range() -> None:
    pixels = np.asarray([[0, 10, 11, 12, 200]], dtype=np.uint8)

    values = shown(pixels, ModalityLUTSequence=lut(10, 8, [0, 51, 255]))

    # First entry up to 10, last from 12 on; 8 bits, so the scale is 255.
    assert values.tolist() == [[0.0, 0.0, 0.2, 1.0, 1.0]]


def test_a_voi_lut_goes_before_the_window_and_its_index_does_not_wrap() -> None:
    pixels = np.asarray([[0, 1000, 4000]], dtype=np.uint16)
    table = lut(0, 8, [0] * 999 + [51] + [255])  # 1001 entries of 8 bits: an index beyond 255

    values = shown(pixels, bits_stored=12, VOILUTSequence=table, WindowCenter=5, WindowWidth=2)

    assert values.tolist() == [[0.0, 1.0, 1.0]]


def test_a_lut_of_packed_bytes_is_read() -> None:
    table = item(LUTDescriptor=[2, 0, 12], LUTData=b"\x00\x00\xff\x0f")  # 0 and 4095
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "OW"
    dataset = scan_object(np.zeros((1, 2), dtype=np.uint8), VOILUTSequence=[table])

    values = picture_of(np.asarray([[0, 1]]), dataset).values

    assert values.tolist() == [[0.0, 1.0]]


def test_padding_is_black_even_in_an_inverted_picture() -> None:
    dataset = scan_object(
        RAMP, colour_model="MONOCHROME1", PixelPaddingValue=0, PixelPaddingRangeLimit=3
    )

    picture = picture_of(RAMP, dataset)

    assert picture.values[0, :5].tolist() == [0.0, 0.0, 0.0, 0.0, 1.0 - 4 / 255]
    assert picture.valid is not None and (~picture.valid).sum() == 4


def test_signed_padding_written_as_unsigned_is_understood() -> None:
    dataset = scan_object(np.zeros((1, 2), dtype=np.uint16), PixelPaddingValue=0xF830)
    dataset.PixelRepresentation = 1
    stored = np.asarray([[-2000, 5]], dtype=np.int16)  # 0xF830 in two's complement is -2000

    picture = picture_of(stored, dataset)

    assert picture.valid is not None and picture.valid.tolist() == [[False, True]]


@pytest.mark.parametrize("place", ["PerFrame", "Shared"])
def test_an_enhanced_object_s_transforms_are_found_in_its_functional_groups(place: str) -> None:
    groups = item(
        PixelValueTransformationSequence=[item(RescaleSlope=2, RescaleIntercept=-100)],
        FrameVOILUTSequence=[item(WindowCenter=60.5, WindowWidth=101)],
    )

    elements: dict[str, Any] = {f"{place}FunctionalGroupsSequence": [groups]}
    enhanced = shown(RAMP, **elements)

    plain: dict[str, Any] = {
        "RescaleSlope": 2,
        "RescaleIntercept": -100,
        "WindowCenter": 60.5,
        "WindowWidth": 101,
    }
    assert np.array_equal(enhanced, shown(RAMP, **plain))


@pytest.mark.parametrize(
    "elements",
    [
        {"WindowCenter": 50, "WindowWidth": 0},
        {"WindowCenter": 50, "WindowWidth": 0.5},
        {"WindowCenter": 50, "WindowWidth": -5},
        {"WindowCenter": 50, "WindowWidth": 10, "VOILUTFunction": "CUBIC"},
        {"RescaleSlope": 0, "RescaleIntercept": 0},
        {"VOILUTSequence": lut(0, 17, [0, 1])},
        {"VOILUTSequence": [item(LUTDescriptor=[3, 0, 8], LUTData=[1, 2])]},
        {"ModalityLUTSequence": [item(LUTDescriptor=[2, 0, 8])]},
        {"VOILUTSequence": [item(LUTData=[1, 2])]},
    ],
)
def test_a_transform_that_says_nothing_is_refused(elements: dict[str, Any]) -> None:
    with pytest.raises(RefusedScanError) as caught:
        shown(RAMP, **elements)

    assert caught.value.reason is Reason.GREY_SCALE


def random_transforms(seed: int) -> tuple[Dataset, np.ndarray[Any, Any]]:
    """A picture of random depth, sign and polarity with random transforms, and its values."""
    draws = np.random.default_rng(seed)
    bits, signed = int(draws.choice([8, 10, 12, 16])), bool(draws.integers(2))
    elements: dict[str, Any] = {}
    if draws.integers(2):
        slope, intercept = draws.normal(0, 3), draws.normal(0, 500)
        elements |= {"RescaleSlope": f"{slope:.6g}", "RescaleIntercept": f"{intercept:.6g}"}
    elif draws.integers(2):
        table = draws.integers(0, 4096, 300).tolist()
        elements["ModalityLUTSequence"] = lut(int(draws.integers(50)), 12, table)
    if draws.integers(3) == 0:
        table = draws.integers(0, 256, 1000).tolist()
        elements["VOILUTSequence"] = lut(int(draws.integers(50)), 8, table)
    elif draws.integers(3):
        centre, width = draws.normal(1000, 500), draws.uniform(1, 5000)
        elements |= {"WindowCenter": f"{centre:.6g}", "WindowWidth": f"{width:.6g}"}
        elements["VOILUTFunction"] = str(draws.choice(["LINEAR", "LINEAR_EXACT", "SIGMOID"]))
    if draws.integers(2):
        elements |= {"PixelPaddingValue": 3, "PixelPaddingRangeLimit": 9}
    kind = f"{'int' if signed else 'uint'}{8 if bits == 8 else 16}"
    low, high = (-(1 << bits - 1), 1 << bits - 1) if signed else (0, 1 << bits)
    middle, spread = draws.integers(low, high), 10 ** draws.uniform(0, 4)
    stored = draws.normal(middle, spread, (96, 97)).clip(low, high - 1).astype(kind)
    model = str(draws.choice(["MONOCHROME1", "MONOCHROME2"]))
    dataset = scan_object(
        stored.view(f"u{stored.dtype.itemsize}"), bits_stored=bits, colour_model=model, **elements
    )
    dataset.PixelRepresentation = int(signed)
    for keyword in {"PixelPaddingValue", "PixelPaddingRangeLimit"} & set(elements):
        dataset[keyword].VR = "US"
    return dataset, stored


@pytest.mark.parametrize("seed", range(60))
def test_a_table_of_values_gives_to_the_bit_what_each_pixel_by_itself_gives(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, stored = random_transforms(seed)

    def by(pixels_per_level: float) -> Picture:
        monkeypatch.setattr(greyscale, "PIXELS_PER_LEVEL", pixels_per_level)
        return picture_of(stored, dataset)

    by_table, by_pixel = by(0), by(1e9)

    assert by_table.values.tobytes() == by_pixel.values.tobytes()
    assert np.array_equal(by_table.valid, by_pixel.valid)  # type: ignore[arg-type]  # or None


@pytest.mark.parametrize(
    ("stored", "mapped"),
    [
        (np.arange(-3, 3, dtype=np.int8).repeat(4), 6),
        (np.asarray([-32768, 32767] * 70_000, dtype=np.int16), 65536),
        (np.asarray([70_000] * 8, dtype=np.uint32), 1),
        (np.asarray([0, 1 << 30] * 8, dtype=np.uint32), 16),  # no table of a billion entries
        (np.asarray([5, 9], dtype=np.uint8), 2),
    ],
)
def test_no_more_values_are_mapped_than_there_are(stored: Any, mapped: int) -> None:
    sizes: list[int] = []

    def mapping(values: Any) -> Any:
        sizes.append(values.size)
        return values.astype(np.float64) * 2 + 1

    assert np.array_equal(each(stored, mapping), stored.astype(np.float64) * 2 + 1)
    assert sizes == [mapped]


@pytest.mark.parametrize("width", [400.0, 1.5])
def test_a_study_s_window_takes_the_place_of_the_header_s(width: float) -> None:
    window = f'intensity = "fixed"\nwindow = {{ center = 40, width = {width} }}'
    scans = study_of(scans=window).scans
    dataset = scan_object(
        RAMP, RescaleSlope=1, RescaleIntercept=-100, WindowCenter=10, WindowWidth=5
    )
    header = checked_header(dataset)

    values = shown_values(RAMP, dataset, header, scale_of(dataset, header, scans)).values

    assert np.array_equal(values, windowed(RAMP.astype(np.float64) - 100, 40.0, width))
