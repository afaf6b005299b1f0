"""The wire form: what goes in comes out, and nothing but the expected arrays ever does."""

from __future__ import annotations

import hashlib
import json
import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save

from medfed.common.errors import UpdateRejectedError
from medfed.common.updates import (
    HEADER_BYTES,
    Parameters,
    decode,
    encode,
    fingerprint,
    shapes_of,
    subtract,
)

SHAPES = {"b": (3,), "front.w": (2, 1, 2), "scale": ()}
GOOD: Parameters = {
    "b": np.array([1.0, -0.0, 3e-45], np.float32),
    "front.w": np.arange(4, dtype=np.float32).reshape(2, 1, 2),
    "scale": np.array(0.5, np.float32),
}


def raw(header: object, body: bytes = b"") -> bytes:
    """A message in safetensors' layout: header length, JSON header, numbers."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def refused(data: bytes) -> str:
    with pytest.raises(UpdateRejectedError) as caught:
        decode(data, SHAPES, who="site 'A'")
    assert str(caught.value).startswith("site 'A': the message holds ")
    assert "allowed: " in str(caught.value)
    assert caught.value.exit_code == 12
    return str(caught.value)


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(
            lambda name: name != "__metadata__"
        ),
        hnp.arrays(
            np.float32,
            hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
            elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
        ),
        min_size=1,
        max_size=4,
    )
)
@settings(deadline=None, max_examples=100)
def test_what_is_encoded_is_decoded_bit_for_bit(parameters: Parameters) -> None:
    back = decode(encode(parameters), shapes_of(parameters), who="the server")

    assert list(back) == list(parameters)
    for name, array in parameters.items():
        assert back[name].dtype == np.float32
        assert back[name].shape == array.shape
        assert back[name].tobytes() == array.tobytes()


def test_a_single_number_keeps_its_shape() -> None:
    assert decode(encode(GOOD), SHAPES, who="A")["scale"].shape == ()


def test_equal_values_give_equal_bytes_whatever_their_order_type_and_layout() -> None:
    other: Parameters = {
        "scale": np.array(0.5, np.float16),
        "front.w": np.asfortranarray(GOOD["front.w"].astype(np.float64)),
        "b": GOOD["b"][::-1].copy()[::-1],
    }

    assert encode(other) == encode(GOOD)
    assert fingerprint(other) == fingerprint(GOOD)


def test_the_fingerprint_is_the_hash_of_the_wire_form_and_tells_models_apart() -> None:
    assert fingerprint(GOOD) == hashlib.sha256(encode(GOOD)).hexdigest()
    assert fingerprint({**GOOD, "scale": np.array(0.25)}) != fingerprint(GOOD)


def test_the_update_is_site_minus_global() -> None:
    update = subtract({"w": np.array([3.0, 1.0])}, {"w": np.array([1.0, 2.0])})

    assert update["w"].tolist() == [2.0, -1.0]  # the sign that the glossary fixes
    assert update["w"].dtype == np.float32


# ---- hostile bytes -------------------------------------------------------------------------------
def test_every_truncation_is_refused() -> None:
    data = encode(GOOD)

    for length in range(len(data)):
        refused(data[:length])
    refused(data + b"\0")


@given(st.binary(max_size=400))
@settings(deadline=None, max_examples=300)
def test_random_bytes_are_refused_and_raise_nothing_else(data: bytes) -> None:
    refused(data)


@given(
    st.integers(0, len(encode(GOOD)) - 1),
    st.integers(0, 255),
    st.integers(0, 2**64 - 1) | st.none(),
)
@settings(deadline=None, max_examples=300)
def test_a_damaged_message_is_refused_or_has_finite_numbers_of_the_right_shapes(
    place: int, byte: int, length: int | None
) -> None:
    data = bytearray(encode(GOOD))
    data[place] = byte
    if length is not None:
        data[:8] = struct.pack("<Q", length)

    try:
        back = decode(bytes(data), SHAPES, who="site 'A'")
    except UpdateRejectedError:
        return
    assert shapes_of(back) == SHAPES
    assert all(array.dtype == np.float32 and np.isfinite(array).all() for array in back.values())


@given(
    st.recursive(
        st.none() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["b", "dtype", "shape", "data_offsets", "__metadata__"]), inner
            )
        ),
        max_leaves=12,
    ),
    st.binary(max_size=40),
)
@settings(deadline=None, max_examples=300)
def test_a_header_of_any_json_is_refused(header: object, body: bytes) -> None:
    refused(raw(header, body))


@pytest.mark.parametrize("kind", ["F64", "F16", "BF16", "I32", "BOOL", "F8_E4M3", "C64", "F4"])
def test_another_number_type_is_refused(kind: str) -> None:
    bits = {
        "F64": 64,
        "F16": 16,
        "BF16": 16,
        "I32": 32,
        "BOOL": 8,
        "F8_E4M3": 8,
        "C64": 64,
        "F4": 4,
    }
    offset, header = 0, {}
    for name, shape in SHAPES.items():
        size = math.prod(shape) * bits[kind] // 8
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size

    refused(raw(header, bytes(offset)))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ({"more": np.zeros(1, np.float32)}, "4 parameters with other names"),
        ({"b": None}, "2 parameters with other names"),
        ({"b": np.zeros((1, 3), np.float32)}, "'b' as float32 (1, 3)"),
        ({"b": np.zeros(4, np.float32)}, "'b' as float32 (4,)"),
        ({"b": np.zeros(3, np.float64)}, "'b' as float64 (3,)"),
        ({"b": np.array([0, np.nan, 0], np.float32)}, "NaN or infinity in 'b'"),
        ({"scale": np.array(np.inf, np.float32)}, "NaN or infinity in 'scale'"),
        ({"scale": np.array(-np.inf, np.float32)}, "NaN or infinity in 'scale'"),
    ],
)
def test_other_arrays_than_the_expected_are_refused_and_named(
    spoil: dict[str, np.ndarray | None], words: str
) -> None:
    arrays = {name: array for name, array in {**GOOD, **spoil}.items() if array is not None}

    assert words in refused(save(arrays))


def test_names_of_the_sender_never_enter_a_message_or_a_log() -> None:
    spoiled = {**GOOD, "\n<script>": np.zeros(1, np.float32)}

    assert "script" not in refused(save(spoiled))


def test_two_parameters_over_the_same_bytes_are_refused() -> None:
    entry = {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}
    shapes = {"a": (3,), "b": (3,)}

    with pytest.raises(UpdateRejectedError):
        decode(raw({"a": entry, "b": entry}, bytes(12)), shapes, who="A")


def test_a_message_too_large_is_refused_before_it_is_read() -> None:
    numbers = 4 * 8  # 3 + 4 + 1 float32

    assert f"at most {numbers + HEADER_BYTES}" in refused(bytes(numbers + HEADER_BYTES + 1))


def test_a_header_that_claims_the_whole_memory_is_refused() -> None:
    huge = {"b": {"dtype": "F32", "shape": [2**61], "data_offsets": [0, 2**63]}}

    refused(raw(huge))
    refused(struct.pack("<Q", 2**63) + b"{}")
    refused(raw(b'{"b":' + b"[" * 500_000))
