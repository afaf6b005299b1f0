"""Model parameters and updates, and the one form in which they travel and are stored.

The wire form is ``safetensors``: a length, a JSON header, raw little-endian numbers. It
cannot carry code, and it is refused unless names, shapes and types are exactly those of the
study's network: a site or a server that sends something else learns nothing and breaks nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as _load
from safetensors.numpy import save as _save

from medfed.common.errors import UpdateRejectedError

Parameters: TypeAlias = dict[str, npt.NDArray[Any]]
"""Parameter name -> array. On the wire float32."""

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
"""Parameter name -> shape: what a valid message must hold, no more and no less."""

HEADER_BYTES = 1 << 20
"""How much a message may be larger than its numbers."""


def shapes_of(parameters: Parameters) -> dict[str, tuple[int, ...]]:
    """The shapes that an update of these parameters must have."""
    return {name: tuple(array.shape) for name, array in parameters.items()}


def encode(parameters: Parameters) -> bytes:
    """Write parameters or an update in wire form.

    Args:
        parameters: Any floating type; written as float32, names sorted.

    Guarantee:
        The same values give the same bytes.
    """
    plain = {  # not ascontiguousarray: it makes a single number an array of one
        name: np.asarray(parameters[name], dtype="<f4", order="C") for name in sorted(parameters)
    }
    return bytes(_save(plain))


def decode(data: bytes, shapes: Shapes, *, who: str) -> Parameters:
    """Read the wire form and check it against what is expected.

    Args:
        data: The message.
        shapes: Exactly the expected names and shapes.
        who: The sender, for messages.

    Returns:
        float32 arrays, in the order of ``shapes``.

    Raises:
        UpdateRejectedError: too large, malformed, another name, shape or type, or a value that
            is not finite.
    """
    limit = 4 * sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes.values()) + HEADER_BYTES
    if len(data) > limit:
        raise _rejected(who, f"{len(data)} bytes", f"at most {limit}")
    try:
        arrays = _load(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _rejected(who, "bytes that are no safetensors file", "safetensors") from error
    if set(arrays) != set(shapes):
        raise _rejected(who, f"{len(arrays)} parameters with other names", f"{len(shapes)}")
    for name, shape in shapes.items():
        array = arrays[name]
        if array.shape != tuple(shape) or array.dtype != np.float32:
            raise _rejected(who, f"{name!r} as {array.dtype} {array.shape}", f"float32 {shape}")
        if not np.isfinite(array).all():
            raise _rejected(who, f"NaN or infinity in {name!r}", "finite numbers")
    return {name: arrays[name] for name in shapes}


def _rejected(who: str, found: str, allowed: str) -> UpdateRejectedError:
    return UpdateRejectedError(
        f"{who}: the message holds {found}; allowed: {allowed}.",
        advice="check that both sides run the same medfed version and study.",
    )


def fingerprint(parameters: Parameters) -> str:
    """SHA-256 of the wire form: names a model exactly, 64 hexadecimal digits."""
    return hashlib.sha256(encode(parameters)).hexdigest()


def subtract(after: Parameters, before: Parameters) -> Parameters:
    """The update that leads from ``before`` to ``after``: site minus global, float32."""
    return {
        name: np.asarray(after[name], np.float32) - np.asarray(before[name], np.float32)
        for name in before
    }
