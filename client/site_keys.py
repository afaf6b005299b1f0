"""Where a site's two secret keys lie, and who may read them.

The node key says who the site is; the pseudonym key says who its patients are. Neither leaves.
"""

from __future__ import annotations

import secrets
import stat
from pathlib import Path

from medfed.client.scans.patients import KEY_BYTES
from medfed.common.errors import ConfigError
from medfed.common.trust.private_files import private_folder, write_private


def default_pseudonym_key(witness: Path) -> Path:
    """Where the pseudonym key lies unless ``site.toml`` says otherwise: beside the witness."""
    return witness.with_name(f"{witness.stem}-pseudonym.key")


def make_pseudonym_key(key: Path) -> None:
    """Write a new key by which patients are named."""
    if not key.parent.is_dir():  # one that is there may be others' too: left as it is
        private_folder(key.parent)
    write_private(key, secrets.token_bytes(KEY_BYTES))


def check_key_place(key: Path, root: Path, scans: Path) -> None:
    """Keep the key that names patients apart from what it names: their spend, and their scans.

    Raises:
        ConfigError: the key lies, or would lie, in the site's folder or with the scans.
    """
    for folder, what in ((root, "the site's folder"), (scans, "the scans folder")):
        if is_within(key, folder):
            raise ConfigError(
                f"{key}: the pseudonym key would lie in {what}, {folder}; whoever gets a copy of "
                "both could tell which patient took part in what.",
                advice="give --pseudonym-key (site.toml: [ledger] pseudonym_key) a path outside "
                "both, and move the key there if the site has one.",
            )


def is_within(path: Path, folder: Path) -> bool:
    """Whether a path lies in a folder, links followed."""
    return path.resolve().is_relative_to(folder.resolve())


def check_secret(path: Path) -> None:
    """Refuse a key that is missing or that others may read.

    Raises:
        ConfigError: says which of the two, and of which file.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise ConfigError(
            f"{path}: the key cannot be read ({error.strerror}).",
            advice="restore it from its backup; a new site would forget what its patients have "
            "spent.",
        ) from error
    if mode & 0o077:
        raise ConfigError(
            f"{path}: other users of this machine may read the key (mode {mode:04o}, "
            "allowed: 0600).",
            advice=f"chmod 600 {path}",
        )
