"""What a coordinator's folder remembers: the certificates it issued, and its number.

One file, ``state.json``, replaced in one step and always before what it tells of leaves the
folder. So no certificate is out there that is not in it, whatever was killed when; at worst it
lists one that nobody got.
"""

from __future__ import annotations

import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, ValidationError

from medfed.common.errors import ConfigError
from medfed.common.strict_toml import StrictTable
from medfed.common.trust.private_files import write_private
from medfed.common.trust.revocation import Serial
from medfed.common.trust.signatures import canonical
from medfed.common.trust.succession import Pem

STATE = "state.json"
SOON = datetime.timedelta(days=14)
"""A certificate that expires within this time is due for renewal."""


class Standing(StrEnum):
    """Where a certificate stands."""

    GOOD = "good"
    EXPIRING = "expiring"
    EXPIRED = "expired"
    REVOKED = "revoked"


class Issued(StrictTable):
    """A certificate that was issued. Public."""

    serial: Serial
    kind: Literal["site", "coordinator", "observer", "server"]
    name: str
    """The site, the person, or ``server``."""
    public_key: Pem
    """OpenSSH form for a site, PEM for others."""
    issued: AwareDatetime
    expires: AwareDatetime
    certificate: Pem
    revoked: AwareDatetime | None = None
    key_refused: bool = False
    """Whether the key, not only this certificate, was thrown out: it is not certified again."""

    def standing(self, at: datetime.datetime) -> Standing:
        """Where it stands at a moment."""
        if self.revoked is not None:
            return Standing.REVOKED
        if at > self.expires:
            return Standing.EXPIRED
        return Standing.EXPIRING if at > self.expires - SOON else Standing.GOOD

    def is_good(self, at: datetime.datetime) -> bool:
        """Whether it opens the door."""
        return self.standing(at) in (Standing.GOOD, Standing.EXPIRING)


class State(StrictTable):
    """All that changes in a coordinator's folder, but the keys."""

    server: str
    """``host:port`` by which sites reach the server."""
    hosts: tuple[str, ...]
    """What else the server's certificate names."""
    number: Annotated[int, Field(ge=0, lt=2**53)]
    """The last number that was given to an approval, a list or a handover."""
    generation: Annotated[int, Field(ge=1)]
    """Which root is in use; the first is 1."""
    overlap_until: AwareDatetime | None = None
    """Until when the root before is accepted too; None: there is none."""
    rotating: bool = False
    """Whether the files of the root in use still lie in ``next/``: a kill came between."""
    issued: tuple[Issued, ...] = ()

    def numbered(self, at: datetime.datetime) -> State:
        """The state with the next number.

        It is the time in seconds, or one more than the last: so it grows also after the folder
        was restored from a backup that does not know the last ones.
        """
        return self.model_copy(update={"number": max(self.number + 1, int(at.timestamp()))})

    def with_issued(self, certificate: Issued) -> State:
        """The state with one more certificate."""
        return self.model_copy(update={"issued": (*self.issued, certificate)})

    def sites(self, at: datetime.datetime) -> dict[str, Issued]:
        """The newest certificate of every site that has a good one, by name."""
        return {c.name: c for c in self.issued if c.kind == "site" and c.is_good(at)}


def read_state(folder: Path) -> State:
    """Read a coordinator's state.

    Raises:
        ConfigError: it is no coordinator's folder, or the file is damaged.
    """
    path = folder / STATE
    try:
        return State.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"{folder}: is no coordinator's folder ({STATE}: {error.strerror}).",
            advice="give the folder that `medfed enrol init` made.",
        ) from error
    except ValidationError as error:
        raise ConfigError(
            f"{path}: is damaged; it must be as medfed wrote it.",
            advice="restore the coordinator's folder from its newest backup.",
        ) from error


def write_state(folder: Path, state: State) -> None:
    """Replace a coordinator's state in one step.

    Raises:
        ConfigError: it cannot be written; the earlier one stands.
    """
    write_private(folder / STATE, canonical(state.model_dump(mode="json")) + b"\n", replace=True)
