"""Change the root in a coordinator's folder, so that a kill at any moment loses nothing.

The next root is made whole in ``next/``. Writing the state with ``rotating`` is the moment at
which it becomes the one in use; then its files are moved to their places one by one, and whoever
opens the folder next finishes that if it was cut off.
"""

from __future__ import annotations

import datetime
import os
import shutil
from pathlib import Path

from cryptography import x509

from medfed.common.errors import ConfigError
from medfed.common.trust.certificates import load_authority, new_authority, read_authority
from medfed.common.trust.private_files import private_folder, write_private
from medfed.common.trust.signatures import (
    new_signing_key,
    parse_verifying_key,
    read_signing_key,
)
from medfed.common.trust.succession import Root, sign_handover
from medfed.deploy.coordinator_state import State, write_state

_NEXT = "next"
_KEPT = ("ca.key", "ca.pem", "study.pub")
"""Of a root on its way out. Its study key signs nothing more and is not kept."""


def root_in(folder: Path) -> Root:
    """Read the public half of a root: ``ca.pem`` and ``study.pub``.

    Raises:
        ConfigError: a file cannot be read.
        TrustError: one of them is not what it must be.
    """
    authority = x509.load_pem_x509_certificate(read_authority(folder / "ca.pem"))
    try:
        pem = (folder / "study.pub").read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{folder / 'study.pub'}: cannot be read ({error.strerror}).",
            advice="restore the coordinator's folder from its newest backup.",
        ) from error
    return Root(authority, parse_verifying_key(pem, source=str(folder / "study.pub")))


def past_folder(folder: Path, state: State) -> Path:
    """Where the root before the one in use lies."""
    return folder / "past" / str(state.generation - 1)


def handovers(folder: Path, state: State) -> list[str]:
    """Read every handover so far, oldest first."""
    names = [f"{number}.json" for number in range(2, state.generation + 1)]
    return [(folder / "handovers" / name).read_text("ascii") for name in names]


def rotate(folder: Path, state: State, *, at: datetime.datetime, days: int) -> State:
    """Make the next root, have the old one sign it, and put it into use.

    Args:
        folder: The coordinator's, held by the caller and ``settled``.
        state: Its state.
        at: Now.
        days: How long both roots are accepted.

    Returns:
        The state, written.

    Raises:
        ConfigError: the overlap of the last rotation has not ended, or the disk is full.
    """
    if state.overlap_until is not None and at < state.overlap_until:
        raise ConfigError(
            f"{folder}: the last rotation's overlap goes on until {state.overlap_until:%Y-%m-%d}; "
            "a site that has not followed it could not follow another.",
            advice="wait until then.",
        )
    state = state.numbered(at)
    shutil.rmtree(folder / _NEXT, ignore_errors=True)  # of a rotation that was never in use
    coming = private_folder(folder / _NEXT)
    new_authority(coming, at)
    new_signing_key(coming)
    signed = sign_handover(
        load_authority(folder),
        read_signing_key(folder / "study.key"),
        root_in(coming),
        number=state.number,
        issued=at,
    )
    write_private(coming / "handover.json", signed)
    state = state.model_copy(
        update={
            "generation": state.generation + 1,
            "overlap_until": at + datetime.timedelta(days=days),
            "rotating": True,
        }
    )
    write_state(folder, state)
    return settled(folder, state)


def settled(folder: Path, state: State) -> State:
    """Finish a rotation that was cut off by a kill; otherwise nothing.

    Guarantee:
        May itself be cut off anywhere and be called again.
    """
    if not state.rotating:
        return state
    coming = folder / _NEXT
    private_folder(folder / "past")
    past = private_folder(past_folder(folder, state))
    for name in ("ca.key", "ca.pem", "study.key", "study.pub"):
        if (coming / name).exists():  # so what lies at its place is still the old one
            if name in _KEPT and not (past / name).exists():
                write_private(past / name, (folder / name).read_bytes())
            os.replace(coming / name, folder / name)
    if (coming / "handover.json").exists():
        kept = private_folder(folder / "handovers") / f"{state.generation}.json"
        os.replace(coming / "handover.json", kept)
    state = state.model_copy(update={"rotating": False})
    write_state(folder, state)
    shutil.rmtree(coming, ignore_errors=True)
    return state


def forget_past(folder: Path, state: State, at: datetime.datetime) -> None:
    """Delete the private key of the root before, once its overlap has ended."""
    if state.overlap_until is not None and at >= state.overlap_until:
        (past_folder(folder, state) / "ca.key").unlink(missing_ok=True)
