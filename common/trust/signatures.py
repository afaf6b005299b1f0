"""Signed documents: JSON in one exact form, under an Ed25519 signature.

The coordinator's study key signs studies, approvals, revocation lists and the handover to the next
key. A document is one line::

    {"body":{...},"kind":"medfed-approval-1","signature":"..."}

in canonical form: ASCII, sorted keys, no blanks, every character outside ASCII escaped. What is
read must be the very bytes that writing it again gives, so one content has one file, and neither
a repeated key nor a number in an unusual form can mean one thing to one reader and another to the
next. The signature is over the kind and the body: a list cannot be passed off as an approval.

Source:
    RFC 8032, section 5.1 (Ed25519). https://www.rfc-editor.org/rfc/rfc8032
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from pydantic import ValidationError

from medfed.common.errors import TrustError
from medfed.common.strict_toml import StrictTable
from medfed.common.trust.private_files import write_private
from medfed.common.trust.received_files import read_received, read_secret

_LARGEST_KEYS_BYTES = 4096
_PEM_END = b"-----END PUBLIC KEY-----"

Body = TypeVar("Body", bound=StrictTable)


class VerifyingKey:
    """The public half of a study key. Equal keys are equal objects.

    Args:
        key: The key.
    """

    def __init__(self, key: Ed25519PublicKey) -> None:
        self._key = key
        self.raw = key.public_bytes(Encoding.Raw, PublicFormat.Raw)

    @property
    def pem(self) -> str:
        """The key as it stands in ``study.pub``."""
        return self._key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

    def verify(self, kind: str, message: bytes, signature: bytes, *, source: str) -> None:
        """Check a signature of ``SigningKey.sign``.

        Raises:
            TrustError: it is not this key's, or of another kind or message.
        """
        try:
            self._key.verify(signature, _signed(kind, message))
        except InvalidSignature as error:
            raise TrustError(
                f"{source}: its signature is not by the study key that is trusted here.",
                advice="use the file as the coordinator sent it; ask the coordinator by phone if "
                "it is theirs.",
            ) from error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VerifyingKey) and other.raw == self.raw

    def __hash__(self) -> int:
        return hash(self.raw)


class SigningKey:
    """A study key: the coordinator's, private. It never shows itself.

    Args:
        key: The key.
    """

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @property
    def public(self) -> VerifyingKey:
        """What its signatures are checked with."""
        return VerifyingKey(self._key.public_key())

    def sign(self, kind: str, message: bytes) -> bytes:
        """Sign a message of a kind; 64 bytes."""
        return self._key.sign(_signed(kind, message))


def new_signing_key(folder: Path) -> SigningKey:
    """Make a study key: ``study.key`` (mode 0600) and ``study.pub``.

    Args:
        folder: A private folder that exists.

    Raises:
        ConfigError: a key is there already (it is kept), or the folder cannot be written.
    """
    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_private(folder / "study.key", secret)
    made = SigningKey(key)
    write_private(folder / "study.pub", made.public.pem.encode(), replace=True)
    return made


def read_signing_key(path: Path) -> SigningKey:
    """Read a ``study.key``.

    Raises:
        ConfigError: it cannot be read, or others may read it.
        TrustError: it is another kind of key, or has a password.
    """
    data = read_secret(path, what="the study key")
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _no_study_key(str(path)) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _no_study_key(str(path))
    return SigningKey(key)


def parse_verifying_key(pem: bytes | str, *, source: str) -> VerifyingKey:
    """Read the public half of a study key.

    Raises:
        TrustError: it is no Ed25519 public key.
    """
    try:
        key = load_pem_public_key(pem.encode() if isinstance(pem, str) else pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _no_study_key(source) from error
    if not isinstance(key, Ed25519PublicKey):
        raise _no_study_key(source)
    return VerifyingKey(key)


def read_verifying_keys(path: Path) -> tuple[VerifyingKey, ...]:
    """Read a ``study.pub``: the key in use, and after a rotation the one before it.

    Raises:
        ConfigError: it cannot be read.
        TrustError: it holds anything but Ed25519 public keys.
    """
    data = read_received(path, _LARGEST_KEYS_BYTES, what="a study's public key").strip()
    pieces = [piece + _PEM_END for piece in data.split(_PEM_END)[:-1]]
    if not pieces or not data.endswith(_PEM_END):
        raise _no_study_key(str(path))
    return tuple(parse_verifying_key(piece, source=str(path)) for piece in pieces)


def canonical(value: Any) -> bytes:
    """Write JSON in the one form that is signed.

    Raises:
        ValueError: it holds NaN or an infinity.
        TypeError: it holds what is no JSON.

    Example:
        >>> canonical({"b": 1, "a": [True, "x"]})
        b'{"a":[true,"x"],"b":1}'
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def sign_document(key: SigningKey, kind: str, body: StrictTable) -> bytes:
    """Write a signed document, ending in a new line."""
    fields = body.model_dump(mode="json")
    signature = base64.b64encode(key.sign(kind, canonical(fields))).decode()
    return canonical({"body": fields, "kind": kind, "signature": signature}) + b"\n"


def open_document(
    data: bytes, kind: str, model: type[Body], keys: Iterable[VerifyingKey], *, source: str
) -> Body:
    """Check a signed document and read it.

    Args:
        data: The file's bytes; blanks and new lines around the document are allowed.
        kind: Which kind of document it must be.
        model: What its body must be.
        keys: Whose signature is taken; one of them must have signed.
        source: What to call the file in messages.

    Raises:
        TrustError: it is no such document, not in canonical form, or signed by nobody in ``keys``.
    """
    body, signature = _split(data, kind, source=source)
    _check_signed(kind, canonical(body), signature, list(keys), source=source)
    return _modelled(body, kind, model, source=source)


def unverified(data: bytes, kind: str, model: type[Body], *, source: str) -> Body:
    """Read a document without looking at its signature: only to learn whose it says it is.

    Raises:
        TrustError: it is no such document, or not in canonical form.
    """
    return _modelled(_split(data, kind, source=source)[0], kind, model, source=source)


def _split(data: bytes, kind: str, *, source: str) -> tuple[Any, bytes]:
    """The body and signature of a document in canonical form."""
    try:
        found = json.loads(data)
        if canonical(found) != data.strip():
            raise _no_document(source, kind, "something that was written or changed by other means")
        body, text = found.pop("body"), found.pop("signature")
        signature = base64.b64decode(text, validate=True)
        if base64.b64encode(signature).decode() != text:
            raise _no_document(source, kind, "something that was written or changed by other means")
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError, binascii.Error):
        raise _no_document(source, kind, "something else") from None
    if found != {"kind": kind}:
        raise _no_document(source, kind, "another kind of document")
    return body, signature


def _modelled(body: Any, kind: str, model: type[Body], *, source: str) -> Body:
    try:
        return model.model_validate_json(canonical(body))
    except ValidationError:  # what it found may be anything: not shown
        raise _no_document(source, kind, "one with fields that are not allowed") from None


def _check_signed(
    kind: str, message: bytes, signature: bytes, keys: Sequence[VerifyingKey], *, source: str
) -> None:
    for number, key in enumerate(keys, start=1):
        try:
            return key.verify(kind, message, signature, source=source)
        except TrustError:
            if number == len(keys):
                raise
    raise ValueError("no key to check a signature with")


def _signed(kind: str, message: bytes) -> bytes:
    return kind.encode("ascii") + b"\n" + message


def _no_document(source: str, kind: str, found: str) -> TrustError:
    return TrustError(
        f"{source}: found {found}; allowed is a signed document of kind {kind!r}.",
        advice="use the file as the coordinator sent it, or ask for it again.",
    )


def _no_study_key(source: str) -> TrustError:
    return TrustError(
        f"{source}: found no study key; allowed is an Ed25519 key without a password (PEM).",
        advice="use study.key and study.pub as `medfed enrol` wrote them.",
    )
