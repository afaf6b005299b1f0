"""Signed studies: what the signature covers, and that one content has one file."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medfed.common.errors import ConfigError, MedfedError, TrustError
from medfed.common.signed_study import (
    LARGEST_STUDY_BYTES,
    SIGNED_STUDY,
    open_signed_study,
    read_study_file,
    sign_study,
)
from medfed.common.trust.signatures import canonical
from tests.support.signing import Signer, write_toml
from tests.support.sites import make_study

STUDY = make_study()


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    return Signer(tmp_path_factory.mktemp("coordinator"))


@pytest.fixture(scope="module")
def data(signer: Signer) -> bytes:
    return sign_study(signer.key, signer.root, STUDY)


def signed_anew(signer: Signer, data: bytes, **changes: Any) -> bytes:
    """The document with fields of its body changed, under a fresh and right signature."""
    body = json.loads(data)["body"] | changes
    signature = base64.b64encode(signer.key.sign(SIGNED_STUDY, canonical(body))).decode()
    return canonical({"body": body, "kind": SIGNED_STUDY, "signature": signature})


def test_a_signed_study_says_what_was_signed_and_by_whom(signer: Signer, data: bytes) -> None:
    for keys in (None, [signer.key.public]):
        assert open_signed_study(data, keys, source="f") == (STUDY, signer.fingerprint)
    assert sign_study(signer.key, signer.root, STUDY) == data  # one study, one file


@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_one_changed_bit_anywhere_is_refused(
    signer: Signer, data: bytes, place: int, bit: int
) -> None:
    whole = data.strip()  # the new line at its end is not part of it
    spoilt = bytearray(whole)
    spoilt[place % len(whole)] ^= 1 << bit

    with pytest.raises(MedfedError):
        open_signed_study(bytes(spoilt), [signer.key.public], source="f")


def test_a_study_with_one_number_changed_is_refused(signer: Signer, data: bytes) -> None:
    changed = data.replace(b'"rounds":2', b'"rounds":3')
    assert changed != data

    for keys in (None, [signer.key.public]):
        with pytest.raises(TrustError, match="signature is not by the study key"):
            open_signed_study(changed, keys, source="f")


def test_a_study_by_another_key_is_refused_where_keys_are_known(
    signer: Signer, data: bytes, tmp_path: Path
) -> None:
    other = Signer(tmp_path / "other")

    with pytest.raises(TrustError, match="signature is not by the study key"):
        open_signed_study(data, [other.key.public], source="f")


def test_nobody_signs_in_the_name_of_another(signer: Signer, data: bytes, tmp_path: Path) -> None:
    # The key is trusted, but the file would show the fingerprint of somebody else.
    other = Signer(tmp_path / "other")
    theirs = json.loads(sign_study(other.key, other.root, STUDY))["body"]
    forged = signed_anew(signer, data, study_key=theirs["study_key"])

    with pytest.raises(TrustError):
        open_signed_study(forged, [signer.key.public], source="f")
    with pytest.raises(TrustError):
        open_signed_study(forged, source="f")
    with pytest.raises(TrustError, match="not that of the root"):
        sign_study(signer.key, other.root, STUDY)


@pytest.mark.parametrize("what", ["a default left out", "a whole number", "an old key"])
def test_a_study_in_another_form_is_refused_even_if_signed(
    signer: Signer, data: bytes, what: str
) -> None:
    study = json.loads(data)["body"]["study"]
    match what:
        case "a default left out":
            del study["training"]["l1"]
        case "a whole number":
            study["privacy"]["clip_norm"] = 1
        case _:
            study["study"]["expires"] = None

    with pytest.raises(TrustError, match="in another form"):
        open_signed_study(signed_anew(signer, data, study=study), source="f")


def test_a_signed_study_with_an_unknown_network_is_refused(signer: Signer, data: bytes) -> None:
    study = json.loads(data)["body"]["study"] | {"network": {"name": "medfed-tiny!"}}

    with pytest.raises(ConfigError, match="medfed-tiny!"):
        open_signed_study(signed_anew(signer, data, study=study), source="f")


def test_a_study_is_read_from_toml_from_canonical_bytes_and_signed(
    signer: Signer, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    bare.write_bytes(STUDY.canonical())

    assert read_study_file(write_toml(tmp_path / "s.toml")) == (STUDY, None)
    assert read_study_file(bare) == (STUDY, None)
    assert read_study_file(signer.sign(STUDY, tmp_path / "s.json")).fingerprint


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe", b"[study", b"medfed-study-1\n{}", b"{}", b'{"body":1}', b"{" * 100_000],
)
def test_a_file_that_is_no_study_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "s"
    file.write_bytes(content)

    with pytest.raises((ConfigError, TrustError)) as caught:
        read_study_file(file)
    assert caught.value.advice


def test_a_file_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    file = tmp_path / "s"
    file.write_bytes(b" " * (LARGEST_STUDY_BYTES + 1))

    with pytest.raises(TrustError, match="which is shorter"):
        read_study_file(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_study_file(tmp_path / "none")
