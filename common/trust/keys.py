"""The key by which a site's node proves who it is: ECDSA on P-384, in OpenSSH's format.

Flower's node signs each request with the private key, which never leaves the site. The
public key travels to the coordinator by a way that both trust (a call, a known e-mail).
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_public_key,
)

from medfed.common.errors import ConfigError, TrustError
from medfed.common.trust.private_files import private_folder, write_private

_LONGEST_KEY_BYTES = 4096


def new_node_key(folder: Path) -> Path:
    """Make a site's node key: ``node_key`` (mode 0600) and ``node_key.pub``.

    Args:
        folder: The site's ``keys`` folder; made if missing.

    Returns:
        Path of the public key, which the admin sends to the coordinator.

    Raises:
        ConfigError: a key is there already (it is kept), or the folder cannot be written.
    """
    folder = private_folder(folder)
    key = ec.generate_private_key(ec.SECP384R1())
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    write_private(folder / "node_key", secret)
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return write_private(folder / "node_key.pub", public + b"\n", replace=True)


def read_public_key(path: Path) -> bytes:
    """Read a site's public key file.

    Returns:
        As ``parse_public_key``.

    Raises:
        ConfigError: the file cannot be read.
        TrustError: it is not a public node key.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_LONGEST_KEY_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"{path}: the public key cannot be read ({error.strerror}).",
            advice="give the file node_key.pub that the site's admin sent.",
        ) from error
    return parse_public_key(data, source=str(path))


def parse_public_key(data: bytes, *, source: str) -> bytes:
    """Check a site's public key.

    Args:
        data: One line in OpenSSH's format; a comment after the key is allowed.
        source: Where it came from, for the message.

    Returns:
        The same key without its comment, ending in a new line, so that equal keys are
        equal bytes.

    Raises:
        TrustError: it is not a public ECDSA key on P-384. A private key is refused by name.
    """
    if b"PRIVATE KEY" in data:
        raise TrustError(
            f"{source}: found a private key; it must never leave the site.",
            advice="make a new node key at the site and send only node_key.pub.",
        )
    try:
        if len(data) > _LONGEST_KEY_BYTES:
            raise ValueError("too long for a key")
        key = load_ssh_public_key(data.strip())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _not_a_node_key(source, "no OpenSSH public key") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise _not_a_node_key(source, "a key of another kind")
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n"


def fingerprint(public_key: bytes) -> str:
    """Give a public key's fingerprint as ``ssh-keygen -lf`` shows it, to compare by phone.

    Args:
        public_key: As ``parse_public_key`` returns it.

    Returns:
        ``SHA256:`` and 43 characters of base64.
    """
    blob = base64.b64decode(public_key.split()[1])
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def _not_a_node_key(source: str, found: str) -> TrustError:
    return TrustError(
        f"{source}: found {found}; allowed is an ECDSA P-384 public key (ecdsa-sha2-nistp384 ...).",
        advice="send the file keys/node_key.pub that `medfed site init` wrote.",
    )
