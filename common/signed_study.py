"""A signed study: one file that says what is to be approved, and by whom it was written.

It holds the study and the root of the coordinator who signed it, under the signature of that
root's study key. A site checks the signature with the keys that it took up by its enrolment. Who
has no keys, an ethics board, compares the fingerprint of the root with the one that the
coordinator reads out: the file alone only proves that it is of one piece.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from medfed.common.errors import ConfigError, TrustError
from medfed.common.strict_toml import StrictTable
from medfed.common.study import Study, parse_study, study_from_canonical
from medfed.common.trust.received_files import read_received
from medfed.common.trust.signatures import (
    SigningKey,
    VerifyingKey,
    canonical,
    open_document,
    sign_document,
    unverified,
)
from medfed.common.trust.succession import Pem, Root, RootText

SIGNED_STUDY = "medfed-signed-study-1"
"""Kind of the signed document."""

LARGEST_STUDY_BYTES = 4 * 1024**2
_WHAT = "a study"


class _Body(StrictTable):
    study: Study
    authority: Pem
    study_key: Pem


class StudyFile(NamedTuple):
    """A study as a file has it. Public.

    Attributes:
        study: The study.
        fingerprint: Of the root that signed it, as two people compare it by phone; None: unsigned.
    """

    study: Study
    fingerprint: str | None


def sign_study(key: SigningKey, root: Root, study: Study) -> bytes:
    """Write a study with its signature.

    Args:
        key: The study key of ``root``.
        root: Whose study it is.
        study: The study.

    Raises:
        TrustError: the key is not the root's.
    """
    if key.public != root.study_key:
        raise TrustError(
            f"study {study.name!r}: the study key is not that of the root which would sign it.",
            advice="use study.key and study.pub of one folder, as `medfed enrol init` made them.",
        )
    text = RootText.of(root, None)
    body = _Body(study=study, authority=text.authority, study_key=text.study_key)
    return sign_document(key, SIGNED_STUDY, body)


def open_signed_study(
    data: bytes, keys: Iterable[VerifyingKey] | None = None, *, source: str
) -> StudyFile:
    """Check a signed study and read it.

    Args:
        data: The file.
        keys: Whose signature is taken. None: the key that the file itself names; then whoever
            reads it must compare the fingerprint.
        source: What to call the file in messages.

    Raises:
        TrustError: it is no signed study, or by none of ``keys``.
        ConfigError: its network is not known here, or does not fit.

    Guarantee:
        One study and one root have one file: no other bytes are taken for it but blanks around it.
    """
    claimed = _root_of(unverified(data, SIGNED_STUDY, _Body, source=source), source)
    trusted = [claimed.study_key] if keys is None else list(keys)
    body = open_document(data, SIGNED_STUDY, _Body, trusted, source=source)
    if claimed.study_key not in trusted:  # signed by a trusted key, in the name of another
        raise _changed(source)
    if not data.strip().startswith(b'{"body":' + canonical(body.model_dump(mode="json")) + b","):
        raise _changed(source)
    return StudyFile(study_from_canonical(body.study.canonical()), claimed.fingerprint)


def read_study_file(path: Path, keys: Iterable[VerifyingKey] | None = None) -> StudyFile:
    """Read a study from a file of any form: TOML, signed, or the canonical bytes.

    Args:
        path: The file.
        keys: As ``open_signed_study``; asked only if the file is signed.

    Raises:
        ConfigError: it cannot be read, or is no study.
        TrustError: it is longer than any study, or its signature is wrong.
    """
    data = read_received(path, LARGEST_STUDY_BYTES, what=_WHAT)
    if data.lstrip().startswith(b"{"):  # no TOML begins so
        return open_signed_study(data, keys, source=str(path))
    if data.startswith(b"medfed-study-"):
        return StudyFile(study_from_canonical(data), None)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: the study file cannot be read ({type(error).__name__}).",
            advice="give the path of a study TOML; `medfed study new` writes one.",
        ) from error
    return StudyFile(parse_study(text, source=str(path)), None)


def _root_of(body: _Body, source: str) -> Root:
    text = RootText(authority=body.authority, study_key=body.study_key, until=None)
    root = text.parsed(source=source)
    if RootText.of(root, None) != text:
        raise _changed(source)
    return root


def _changed(source: str) -> TrustError:
    return TrustError(
        f"{source}: found a signed study in another form than medfed writes.",
        advice="use the same medfed version on both sides, or ask for the file again.",
    )
