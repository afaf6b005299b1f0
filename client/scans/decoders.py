"""Which decoder reads which transfer syntax: one each, the same at every site.

Lossy JPEG and JPEG 2000 leave the rounding to the decoder, and two of them differ by a few grey
levels. So none is chosen by what happens to be installed: a site either has the decoder of a
transfer syntax or refuses its files and says what to install.

Two decoders that pydicom would take stay unused even where installed: gdcm, which ends the whole
process on a broken stream, and pylibjpeg-libjpeg, which is under the GPL. What only they read in
pydicom is read here with ``imagecodecs`` (libjpeg-turbo), of the extra ``codecs``.

Source:
    pydicom, "Decoding plugins": a module with ``DECODER_DEPENDENCIES``, ``is_available`` and a
    function of (frame, runner). DICOM PS3.5 section 8.2 (what each transfer syntax holds).
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np
from pydicom import uid as uids
from pydicom.pixels.decoders.base import DecodeRunner, get_decoder

from medfed.client.scans.refusals import Reason, RefusedScanError


class Decoder(NamedTuple):
    """One decoder.

    Attributes:
        plugin: The name under which pydicom knows it.
        missing: Why a file is refused where it is not installed.
    """

    plugin: str
    missing: Reason


_OPENJPEG: Final = Decoder("pylibjpeg", Reason.NO_JPEG_2000)
_CHARLS: Final = Decoder("medfed-charls", Reason.NO_JPEG_LS)
_TURBO: Final = Decoder("medfed-turbo", Reason.NO_JPEG_LOSSLESS)
_PILLOW: Final = Decoder("pillow", Reason.NO_DECODER)

DECODERS: Final[dict[str, Decoder]] = {
    uids.RLELossless: Decoder("pydicom", Reason.NO_DECODER),
    uids.JPEGBaseline8Bit: _PILLOW,
    uids.JPEGExtended12Bit: _TURBO._replace(missing=Reason.NO_JPEG_12_BIT),
    uids.JPEGLossless: _TURBO,
    uids.JPEGLosslessSV1: _TURBO,
    uids.JPEGLSLossless: _CHARLS,
    uids.JPEGLSNearLossless: _CHARLS,
    uids.JPEG2000Lossless: _OPENJPEG,
    uids.JPEG2000: _OPENJPEG,
    uids.HTJ2KLossless: _OPENJPEG,
    uids.HTJ2KLosslessRPCL: _OPENJPEG,
    uids.HTJ2K: _OPENJPEG,
}
"""Compressed transfer syntax → its decoder; JPEG Extended of 8 bits is read as Baseline is."""

_OWN: Final = {_TURBO.plugin: ("imagecodecs", "_turbo"), _CHARLS.plugin: ("pyjpegls", "_charls")}
"""Plugins of this module → the package that they need, and their function."""
DECODER_DEPENDENCIES: Final = {
    syntax: (_OWN[decoder.plugin][0],)
    for syntax, decoder in DECODERS.items()
    if decoder.plugin in _OWN
}
"""For pydicom."""


def plugin_for(syntax: str, bits: int | None) -> str:
    """Name the pydicom plugin that decodes a frame.

    Args:
        syntax: UID of a compressed transfer syntax.
        bits: Bits per sample that the frame's codestream states; None for run-length frames.

    Raises:
        RefusedScanError: it is not installed; the reason names what to install.
    """
    extended_8_bit = syntax == uids.JPEGExtended12Bit and bits == 8
    decoder = _PILLOW if extended_8_bit else DECODERS[syntax]
    if not _is_there(syntax, decoder.plugin):
        raise RefusedScanError(decoder.missing)
    return decoder.plugin


def is_available(syntax: str) -> bool:
    """Say to pydicom whether the plugin of this module for a transfer syntax can be used."""
    load = _imagecodecs if DECODERS[syntax].plugin == _TURBO.plugin else _jpeg_ls
    try:
        load()
    except ImportError:
        return False
    return True


def _imagecodecs() -> Any:
    return importlib.import_module("imagecodecs")


def _jpeg_ls() -> Any:
    return importlib.import_module("jpeg_ls")


@cache
def _is_there(syntax: str, plugin: str) -> bool:
    decoder = get_decoder(syntax)
    if plugin in _OWN:
        decoder.add_plugin(plugin, (__name__, _OWN[plugin][1]))
    return plugin in decoder.available_plugins


def _turbo(frame: bytes, runner: DecodeRunner) -> bytearray:
    """Decode JPEG of 8 or 12 bits, and lossless of 2 to 16, to the components it holds."""
    # One colour space in and out: what the components mean, pydicom reads from the header.
    as_is = {"colorspace": "RGB", "outcolorspace": "RGB"} if runner.samples_per_pixel == 3 else {}
    values = _imagecodecs().jpeg8_decode(frame, **as_is)
    if runner.transfer_syntax == uids.JPEGExtended12Bit:
        # Lossy values overshoot; pydicom would cut the upper bits off and make white black.
        values = np.minimum(values, (1 << runner.bits_stored) - 1)
    runner.set_option("bits_allocated", 8 * values.dtype.itemsize)
    runner.set_option("planar_configuration", 0)
    return bytearray(values.tobytes())


def _charls(frame: bytes, runner: DecodeRunner) -> bytearray:
    """Decode JPEG-LS, with or without a fill byte that CharLS stumbles over."""
    decode = _jpeg_ls().decode_pixel_data
    try:
        values, info = decode(frame)
    except RuntimeError:
        values, info = decode(_without_fill_byte(frame))
    runner.set_option("planar_configuration", int(info["interleave_mode"] == 0))
    runner.set_option("bits_allocated", 8 if info["bits_per_sample"] <= 8 else 16)
    return bytearray(values)


def _without_fill_byte(frame: bytes) -> bytes:
    """Drop one zero between the data and the end marker, as a writer left it that fills up words.

    Source:
        https://github.com/team-charls/charls/issues/437
    """
    stream = frame.rstrip(b"\0")
    return stream[:-3] + b"\xff\xd9" if stream.endswith(b"\0\xff\xd9") else frame
