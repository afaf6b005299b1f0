"""Name patients by a keyed hash, so that the site knows them again and nobody else does."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from pathlib import Path

from medfed.common.errors import ConfigError

PSEUDONYM_BYTES = 16
_KEY_BYTES = 32

Pseudonymise = Callable[[str], bytes]
"""Patient key -> pseudonym, 16 bytes. Both private."""


class PseudonymKey:
    """A site's pseudonym key. It shows nothing of itself.

    Args:
        path: File of 32 secret bytes.

    Raises:
        ConfigError: it cannot be read or has another length.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._key = path.read_bytes()
        except OSError as error:
            raise _unusable(path, f"cannot be read ({error.strerror})") from error
        if len(self._key) != _KEY_BYTES:
            raise _unusable(path, f"has {len(self._key)} bytes, not {_KEY_BYTES}")

    def __call__(self, patient_key: str) -> bytes:
        """The pseudonym of a patient: HMAC-SHA256 of the patient key, cut to 16 bytes. Private."""
        text = b"patient " + patient_key.encode("utf-8", "surrogatepass")
        return hmac.digest(self._key, text, hashlib.sha256)[:PSEUDONYM_BYTES]

    @property
    def check(self) -> str:
        """A value that tells this key from another and gives nothing else away, 64 digits."""
        return hmac.digest(self._key, b"medfed pseudonym key check", hashlib.sha256).hex()


def _unusable(path: Path, found: str) -> ConfigError:
    return ConfigError(
        f"{path}: the pseudonym key {found}.",
        advice="restore it from a backup of the site's folder.",
    )
