"""Name patients by a keyed hash, so that the site knows them again and nobody else does.

What counts as the same patient: the same patient id, without the blanks around it, and exact in
all else. Capitals and leading zeros count (``007`` and ``7`` are two patients), because whether
they matter differs from one archive to the next, and taking two people for one cannot be undone;
who are one is said by ``medfed site merge``. The issuer of an id does not count: two people with
one number from two issuers are one privacy unit. That keeps the promise to both, each being
within the unit, and only makes less of their scans.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from medfed.client.scans.layouts.layout import SourceRules
from medfed.common.errors import ConfigError

PSEUDONYM_BYTES: Final = 16
KEY_BYTES: Final = 32
LEFT_OUT: Final = "no patient id, left out as site.toml says"
"""Why a scan without a patient is not used; what the admin reads."""

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
        if len(self._key) != KEY_BYTES:
            raise _unusable(path, f"has {len(self._key)} bytes, not {KEY_BYTES}")

    def __call__(self, patient_key: str) -> bytes:
        """The pseudonym of a patient: HMAC-SHA256 of the patient key, cut to 16 bytes. Private."""
        text = b"patient " + patient_key.encode("utf-8", "surrogatepass")
        return hmac.digest(self._key, text, hashlib.sha256)[:PSEUDONYM_BYTES]

    @property
    def check(self) -> str:
        """A value that tells this key from another and gives nothing else away, 64 digits."""
        return hmac.digest(self._key, b"medfed pseudonym key check", hashlib.sha256).hex()


class PatientNames:
    """Names patients as the ledger does: merged record numbers have one name.

    Args:
        key: The site's.
        merged: Pseudonym -> name, for those that were merged. Private.
    """

    def __init__(self, key: PseudonymKey, merged: Mapping[bytes, bytes]) -> None:
        self._key, self._merged = key, dict(merged)

    @property
    def persons(self) -> frozenset[bytes]:
        """The names of those that were merged. Private."""
        return frozenset(self._merged.values())

    def __call__(self, patient_key: str) -> bytes:
        """The name of a patient. Private."""
        pseudonym = self._key(patient_key)
        return self._merged.get(pseudonym, pseudonym)


def parts_of_units(
    parts: Sequence[int], keys: Sequence[str], units: Sequence[object]
) -> Sequence[int]:
    """Give merged record numbers one part: the first that any of them is in.

    Args:
        parts: Per scan; 0, 1, 2: train, validation, test.
        keys: Record number per scan. Private.
        units: What stands for its person, per scan. Private.

    Returns:
        The part per scan. As it was where a record number is in two parts by itself: that is an
        error of the data set, for the caller to refuse.
    """
    by_key = dict(zip(keys, parts, strict=True))
    alone = len(set(units)) == len(by_key)
    if alone or any(by_key[key] != part for key, part in zip(keys, parts, strict=True)):
        return parts
    first: dict[object, int] = {}
    for part, unit in zip(parts, units, strict=True):
        first[unit] = min(part, first.get(unit, part))
    return [first[unit] for unit in units]


def is_left_out(patient: str, rules: SourceRules) -> bool:
    """Whether a scan is left out because nothing says whose it is; counted as ``LEFT_OUT``.

    Args:
        patient: Its patient id; empty: it has none. Private.
        rules: What the site says: otherwise it stays, as a privacy unit of its own, and a study
            that protects patients refuses the set.
    """
    return not patient and rules.without_patient == "leave-out"


def _unusable(path: Path, found: str) -> ConfigError:
    return ConfigError(
        f"{path}: the pseudonym key {found}.",
        advice="restore it from its backup; site.toml, [ledger], says where it lies.",
    )
