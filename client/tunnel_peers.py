"""Whose process is at the other end of a loopback connection, by the kernel's own table.

The stock node can be given no secret for its link to the tunnel, so this is how others on the
machine are kept out. Over TCP the kernel answers no ``SO_PEERCRED``; the table of connections
names the user of each socket instead.

Source:
    Linux, Documentation/networking/proc_net_tcp.rst: the columns of ``/proc/net/tcp``.
"""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path
from typing import Final

from medfed.common.errors import ConfigError

_TABLE: Final = Path("/proc/net/tcp")
_LOCAL, _REMOTE, _STATE, _USER = 1, 2, 3, 7
_NOBODYS_STATES: Final = {"06", "07"}
"""TIME_WAIT and CLOSE: the table shows user 0 for what no process holds any more."""
_LOOKS: Final = 3
"""The table is not read in one step; a row may be missed while others come and go."""

Address = tuple[str, int]


def is_own(taken: socket.socket, table: Path = _TABLE) -> bool:
    """Whether a process of this user is at the other end of an accepted connection.

    Args:
        taken: Connected over IPv4 loopback.
        table: For tests.

    Guarantee:
        False where the table does not say.
    """
    try:
        far, near = taken.getpeername()[:2], taken.getsockname()[:2]
    except OSError:  # gone already
        return False
    return any(owner(far, near, table) == os.geteuid() for _ in range(_LOOKS))


def owner(socket_at: Address, connected_to: Address, table: Path = _TABLE) -> int | None:
    """The user id of a socket by its two addresses (IPv4); None: not in the table."""
    wanted = [_written(socket_at), _written(connected_to)]
    try:
        lines = table.read_text("ascii").splitlines()[1:]
    except OSError:
        return None
    for line in lines:
        fields = line.split()
        if fields[_LOCAL : _REMOTE + 1] == wanted and fields[_STATE] not in _NOBODYS_STATES:
            return int(fields[_USER])
    return None


def require_table(table: Path = _TABLE) -> None:
    """Check that the kernel tells whose connections are whose.

    Raises:
        ConfigError: it does not, so nobody could be let in.
    """
    if not os.access(table, os.R_OK):
        raise ConfigError(
            f"{table}: cannot be read; without it the tunnel cannot tell its own node from other "
            "users' programs.",
            advice="run medfed on Linux with /proc mounted.",
        )


def _written(address: Address) -> str:
    """As the table writes it: the address as a number of this machine's byte order, in hex."""
    host, port = address
    (number,) = struct.unpack("=I", socket.inet_aton(host))
    return f"{number:08X}:{port:04X}"
