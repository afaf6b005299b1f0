"""New names for what leaves with a file: patients, objects, days; the same key gives the same.

All come from one secret key by HMAC-SHA256, so that two files of one patient still belong
together and a reference still finds its object, while nobody without the key can go back, not
even by trying every patient number there is. The key is made for one purpose: give another
recipient another key, and the two sets cannot be joined.

Source:
    DICOM PS3.15 annex E (action U: consistent within a set of instances); PS3.5 B.2 (UIDs under
    2.25, from a UUID).
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import uuid
from pathlib import Path
from typing import Final

from medfed.common.errors import ConfigError
from medfed.common.trust.private_files import write_private

KEY_BYTES: Final = 32
MAX_SHIFT_DAYS: Final = 365
"""Dates move by 1 to this many days, either way."""


class ExportNames:
    """The names that one key gives. It shows nothing of itself.

    Args:
        key: Secret; ``KEY_BYTES`` long.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key has {KEY_BYTES} bytes, not {len(key)}")
        self._key = key

    def patient(self, patient_id: str, issuer: str = "") -> str:
        """A patient's new PatientID: 32 hexadecimal digits. Blanks around the old do not count."""
        return self._digest("patient", issuer.strip(), patient_id.strip())[:16].hex()

    def uid(self, uid: str) -> str:
        """An object's new UID: under 2.25, as from a random UUID."""
        return f"2.25.{uuid.UUID(bytes=self._digest('uid', uid.strip())[:16], version=4).int}"

    def shift_days(self, patient: str) -> int:
        """By how many days the dates of a patient (new name) move; never 0."""
        number = int.from_bytes(self._digest("days", patient)[:8], "big") % (2 * MAX_SHIFT_DAYS)
        return number - MAX_SHIFT_DAYS if number < MAX_SHIFT_DAYS else number - MAX_SHIFT_DAYS + 1

    def _digest(self, *parts: str) -> bytes:
        sized = [part.encode("utf-8", "surrogatepass") for part in ("medfed export", *parts)]
        text = b"".join(len(part).to_bytes(4, "big") + part for part in sized)
        return hmac.digest(self._key, text, hashlib.sha256)


def open_names(key_file: Path) -> ExportNames:
    """Read the key, or make it (mode 0600) where there is none.

    Raises:
        ConfigError: it cannot be read or made, has another length, or others may read it.
    """
    try:
        if not key_file.exists():
            write_private(key_file, secrets.token_bytes(KEY_BYTES))
        mode = key_file.stat().st_mode
        with key_file.open("rb") as file:
            key = file.read(KEY_BYTES + 1)
    except OSError as error:
        raise _unusable(key_file, f"cannot be read ({error.strerror})") from None
    if len(key) != KEY_BYTES:
        raise _unusable(key_file, f"does not have {KEY_BYTES} bytes")
    if mode & 0o077:
        raise _unusable(key_file, f"has mode {mode & 0o777:04o}; allowed is 0600")
    return ExportNames(key)


def _unusable(key_file: Path, found: str) -> ConfigError:
    return ConfigError(
        f"{key_file}: the key for new names {found}.",
        advice="give the key of the first run, readable by you alone, or the name of a new file.",
    )
