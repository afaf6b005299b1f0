"""Signed documents: one content has one file, and only its signer could write it."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from medfed.common.errors import ConfigError, TrustError
from medfed.common.strict_toml import StrictTable
from medfed.common.trust.signatures import (
    SigningKey,
    canonical,
    new_signing_key,
    open_document,
    parse_verifying_key,
    read_signing_key,
    read_verifying_keys,
    sign_document,
)

KIND = "medfed-note-1"


class Note(StrictTable):
    text: str
    number: int = 1


KEY = SigningKey(Ed25519PrivateKey.generate())


def opened(data: bytes, *keys: SigningKey, kind: str = KIND) -> Note:
    return open_document(data, kind, Note, [k.public for k in keys or (KEY,)], source="note.json")


@settings(deadline=None)
@given(st.text(), st.integers(-(2**53), 2**53))
def test_what_is_signed_is_read_again(text: str, number: int) -> None:
    note = Note(text=text.encode("utf-8", "ignore").decode(), number=number)

    assert opened(sign_document(KEY, KIND, note)) == note


@settings(deadline=None)
@given(st.data())
def test_no_changed_byte_is_taken(data: st.DataObject) -> None:
    signed = sign_document(KEY, KIND, Note(text="to be kept")).strip()
    at = data.draw(st.integers(0, len(signed) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda b: b != signed[at]))
    # A blank at either end is not of the document.
    changed = signed[:at] + bytes([byte]) + signed[at + 1 :]

    with pytest.raises(TrustError):
        opened(changed)


def test_canonical_form_is_what_the_docstring_says() -> None:
    # Worked by hand: sorted, no blanks, escaped.
    assert canonical({"b": [1, None], "a": "é"}) == b'{"a":"\\u00e9","b":[1,null]}'


def test_blanks_around_the_document_do_not_matter() -> None:
    signed = sign_document(KEY, KIND, Note(text="x"))

    assert opened(b"\r\n" + signed + b"\r\n").text == "x"


def test_any_of_several_keys_may_have_signed() -> None:
    other = SigningKey(Ed25519PrivateKey.generate())

    assert opened(sign_document(KEY, KIND, Note(text="x")), other, KEY).text == "x"


def test_a_document_by_another_key_is_refused() -> None:
    other = SigningKey(Ed25519PrivateKey.generate())

    with pytest.raises(TrustError, match=r"note\.json: its signature is not by the study key"):
        opened(sign_document(other, KIND, Note(text="x")))


def test_a_signature_of_one_kind_is_none_of_another() -> None:
    signed = sign_document(KEY, "medfed-list-1", Note(text="x"))
    passed_off = signed.replace(b"medfed-list-1", KIND.encode())

    with pytest.raises(TrustError, match="signature is not by"):
        opened(passed_off)
    with pytest.raises(TrustError, match="another kind of document"):
        opened(signed)


def changed(change: Callable[[dict[str, Any]], object]) -> bytes:
    """A signed note after a change of its fields, in canonical form again."""
    fields = json.loads(sign_document(KEY, KIND, Note(text="x")))
    change(fields)
    return canonical(fields)


SIGNED = sign_document(KEY, KIND, Note(text="x"))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b"[" * 100_000 + b"]" * 100_000, id="deep and closed"),
        pytest.param(b'{"body":' * 50_000 + b"1" + b"}" * 50_000, id="deep objects"),
        pytest.param(b"9" * 100_000, id="a long number"),
        pytest.param(b"NaN", id="NaN"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b"\xff\xfe", id="no text"),
        pytest.param(SIGNED.replace(b":", b": "), id="blanks"),
        pytest.param(SIGNED.replace(b'"text"', b'"text":"y","text"'), id="a key twice"),
        pytest.param(SIGNED.replace(b'"text":"x"', b'"text":"\\u0078"'), id="an escape"),
        pytest.param(SIGNED.replace(b'"number":1', b'"number":1.0'), id="another number form"),
        pytest.param(SIGNED.decode().encode("utf-16"), id="another encoding"),
        pytest.param(changed(lambda f: f.update(more=1)), id="a further key"),
        pytest.param(changed(lambda f: f.pop("signature")), id="no signature"),
        pytest.param(changed(lambda f: f.update(signature="")), id="an empty signature"),
        pytest.param(changed(lambda f: f.update(signature="!!")), id="no base64"),
        pytest.param(changed(lambda f: f.update(signature=7)), id="a number as signature"),
        pytest.param(changed(lambda f: f.update(body=[])), id="another body"),
        pytest.param(changed(lambda f: f["body"].update(text="y")), id="another text"),
    ],
)
def test_what_is_no_signed_document_is_refused(data: bytes) -> None:
    with pytest.raises(TrustError, match=r"note\.json"):
        opened(data)


def test_a_signature_in_another_spelling_is_refused() -> None:
    # The last of 86 letters of base64 holds two bits of the 64 bytes and four that mean nothing.
    def respell(fields: dict[str, Any]) -> None:
        letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
        text = fields["signature"]
        other = text[:85] + letters[letters.index(text[85]) + 1] + "=="
        assert base64.b64decode(other) == base64.b64decode(text)
        fields["signature"] = other

    with pytest.raises(TrustError, match="by other means"):
        opened(changed(respell))


def test_a_well_signed_body_of_another_shape_is_refused_without_quoting_it() -> None:
    class Other(StrictTable):
        secret: str

    with pytest.raises(TrustError, match="fields that are not allowed") as caught:
        opened(sign_document(KEY, KIND, Other(secret="Patient Zero")))
    assert "Patient" not in str(caught.value)


def test_a_key_is_kept_for_its_owner_and_read_again(tmp_path: Path) -> None:
    made = new_signing_key(tmp_path)

    assert read_signing_key(tmp_path / "study.key").public == made.public
    assert read_verifying_keys(tmp_path / "study.pub") == (made.public,)
    assert (tmp_path / "study.key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="exists already"):
        new_signing_key(tmp_path)


def test_two_keys_in_one_file_keep_their_order(tmp_path: Path) -> None:
    other = SigningKey(Ed25519PrivateKey.generate())
    (tmp_path / "study.pub").write_text(other.public.pem + KEY.public.pem)

    assert read_verifying_keys(tmp_path / "study.pub") == (other.public, KEY.public)


def test_a_private_key_does_not_show_itself() -> None:
    assert "object at" in repr(KEY) and "PRIVATE" not in repr(KEY)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    new_signing_key(tmp_path)
    (tmp_path / "study.key").chmod(mode)

    with pytest.raises(ConfigError, match=f"may read the study key .mode {mode:04o}"):
        read_signing_key(tmp_path / "study.key")


def test_another_kind_of_key_is_refused(tmp_path: Path) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    path = tmp_path / "study.key"
    path.touch(mode=0o600)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))

    with pytest.raises(TrustError, match="no study key"):
        read_signing_key(path)
    locked = BestAvailableEncryption(b"word")
    path.write_bytes(
        Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked)
    )
    with pytest.raises(TrustError, match="no study key"):
        read_signing_key(path)


@pytest.mark.parametrize("text", ["", "hello", KEY.public.pem + "more", KEY.public.pem[:-5]])
def test_a_public_key_file_with_anything_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "study.pub").write_text(text)

    with pytest.raises(TrustError):
        read_verifying_keys(tmp_path / "study.pub")
    with pytest.raises(TrustError):
        parse_verifying_key("", source="nothing")
