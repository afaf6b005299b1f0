"""What the reader makes of 218 real DICOM files, many of them odd or broken on purpose."""

from __future__ import annotations

import numpy as np
import pytest

from medfed.client.scans.frames import decoded_frame
from medfed.client.scans.guards import open_scan
from medfed.client.scans.pixels import read_dicom
from medfed.client.scans.refusals import Reason, RefusedScanError
from tests.support.dicom_files import DICOM_DEV, manifest, outcomes, outcomes_without
from tests.support.scans import study_of

ROUNDED = {
    "pyd__SC_jpeg_no_color_transform.dcm": "be7aa556b206ac44",
    "pyd__SC_rgb_dcmtk_+eb+cr.dcm": "e414aaca68669516",
    "pyd__SC_rgb_dcmtk_+eb+cy+n1.dcm": "e0b1a561989d6f71",
    "pyd__SC_rgb_dcmtk_+eb+cy+np.dcm": "e0b1a561989d6f71",
    "pyd__SC_rgb_jpeg.dcm": "be7aa556b206ac44",
    "pyd__SC_rgb_jpeg_app14_dcmd.dcm": "334275c10bc60e80",
    "pyd__SC_rgb_jpeg_lossy_gdcm.dcm": "e42f7896adb9411a",
    "pyd__examples_ybr_color.dcm": "7275d2af634281c8",
    "pyd__JPGExtended.dcm": "d30242775a414c01",
}
"""Lossy JPEG whose digest in the manifest is that of pylibjpeg-libjpeg, under the GPL. T.81 leaves
the rounding to the decoder: libjpeg-turbo differs by 1 in a component at most, measured with both
installed, and by 3 after the conversion to RGB. These are libjpeg-turbo's own digests, the same
from Pillow and from imagecodecs; here they say that nothing else changes."""

MORE = {
    "pyd__JPEG-lossy.dcm": "d30242775a414c01",  # the picture of JPGExtended, other item structure
    "WG04__JPLY__MR1_JPLY": "5da33a3a0886b8c2",
    "WG04__JPLY__MR3_JPLY": "55b63214b68544ea",
    "WG04__JPLY__RG3_JPLY": "c3f8afd42451473c",
    "WG04__JPLY__XA1_JPLY": "d5f60be5c70a0ee7",
}
"""12-bit JPEG that the decoder of the manifest rejects; compared with lossless twins below."""

BROKEN = {
    "pyd__rtstruct.dcm": Reason.NOT_DICOM,  # no preamble, nor have the next three
    "pyd__ExplVR_LitEndNoMeta.dcm": Reason.NOT_DICOM,
    "pyd__ExplVR_BigEndNoMeta.dcm": Reason.NOT_DICOM,
    "pyd__no_meta.dcm": Reason.NOT_DICOM,
    "pyd__JPEG2000-embedded-sequence-delimiter.dcm": Reason.CODESTREAM,  # its width is overwritten
    "pyd__badVR.dcm": Reason.HEADER,  # "1A" frames
    "pyd__nested_priv_SQ.dcm": Reason.HEADER,  # no rows, no columns
    "pyd__meta_missing_tsyntax.dcm": Reason.SYNTAX,
    "pyd__MR_truncated.dcm": Reason.DECODE,
}
"""Files that are no sound pictures, beside those without any pixel data."""

CODECS = {
    "JPEG Lossless": Reason.NO_JPEG_LOSSLESS,
    "JPEG Extended": Reason.NO_JPEG_12_BIT,  # all of the six are
}
DICOM = {"JPEG 2000": Reason.NO_JPEG_2000, "JPEG-LS": Reason.NO_JPEG_LS}
"""Beginning of a transfer syntax's name → why its files are refused without the extra."""


@pytest.fixture(scope="module")
def found() -> dict[str, str]:
    return {name: result for name, result in outcomes(DICOM_DEV).items() if name in manifest()}


def decodes(row: dict[str, str]) -> bool:
    return row["decode"].startswith("ok")


def test_every_sound_file_decodes_to_the_pixels_of_the_manifest(found: dict[str, str]) -> None:
    expected = {name: row["pixels_sha256"] for name, row in manifest().items() if decodes(row)}
    assert len(expected) == 136  # as the data's README says

    exact = expected.keys() - ROUNDED.keys()

    assert {name: found[name] for name in exact} == {name: expected[name] for name in exact}
    assert {name: found[name][:16] for name in ROUNDED} == ROUNDED


def test_every_other_file_is_refused_with_its_reason_or_is_12_bit_jpeg(
    found: dict[str, str],
) -> None:
    without_pixels = {
        name: Reason.NO_PIXELS
        for name, row in manifest().items()
        if row["has_pixels"] == "False" and name not in BROKEN
    }
    others = {name: found[name] for name, row in manifest().items() if not decodes(row)}

    assert {name: others.pop(name)[:16] for name in MORE} == MORE
    assert others == without_pixels | BROKEN


@pytest.mark.parametrize(
    ("name", "most"),  # mean difference: a quarter more than measured, of values up to 4000
    [("MR1", 14.0), ("MR3", 5.6), ("RG3", 2.2), ("XA1", 2.7)],
)
def test_12_bit_pictures_look_like_their_lossless_twins(name: str, most: float) -> None:
    manifest()
    lossy, lossless = (
        decoded_frame(*open_scan(DICOM_DEV / f"WG04__{form}__{name}_{form}"), 0).astype(float)
        for form in ("JPLY", "JPLL")
    )

    assert np.abs(lossy - lossless).mean() < most
    assert np.corrcoef(lossy.ravel(), lossless.ravel())[0, 1] > 0.998


@pytest.mark.parametrize(
    ("missing", "families"),
    [(("imagecodecs",), CODECS), (("pylibjpeg", "openjpeg", "jpeg_ls"), DICOM)],
    ids=["without codecs", "without dicom"],
)
def test_without_an_extra_its_transfer_syntaxes_are_refused_and_no_others(
    found: dict[str, str], missing: tuple[str, ...], families: dict[str, Reason]
) -> None:
    expected = dict(found)
    for name, row in manifest().items():
        for syntax, reason in families.items():
            if row["ts"].startswith(syntax) and len(found[name]) == 64:  # a digest: it decodes
                expected[name] = reason

    without = outcomes_without(DICOM_DEV, missing)

    assert {name: without[name] for name in found} == expected
    assert set(families.values()) <= set(without.values())
    extra = "codecs" if families is CODECS else "dicom"
    assert all(reason.endswith(f": pip install 'medfed[{extra}]'") for reason in families.values())


def test_every_file_gives_a_tensor_or_a_reason() -> None:
    tensors = 0
    for name in manifest():
        try:
            tensor = read_dicom(DICOM_DEV / name, study_of().scans).tensor
        except RefusedScanError:
            continue
        assert tensor.shape == (1, 32, 32) and np.isfinite(tensor).all(), name
        tensors += 1

    assert tensors > 60  # modalities, views and series have rules of their own
