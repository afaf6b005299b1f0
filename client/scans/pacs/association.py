"""An association that bounds what it reads, for asking only.

pynetdicom reads as much as the peer's header announces: a six byte header can make it reserve
four gigabytes. The socket here refuses such a header, and ends an association that sends more
than the request may bring. There is no server in this file, and nothing here listens.

Source:
    DICOM PS3.8 section 9.3 (structure of the protocol data units).
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
from typing import Final

from pynetdicom import AE, _config
from pynetdicom.association import Association
from pynetdicom.transport import AddressInformation, AssociationSocket

MAX_PDU_BYTES: Final = 1 << 20
"""Largest protocol data unit that is read; we ask for ``ASKED_PDU_BYTES`` at most."""
ASKED_PDU_BYTES: Final = 128 << 10
_END_S: Final = 5.0

logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)  # it writes down identifiers
_config.LOG_HANDLER_LEVEL = "none"
_config.LOG_REQUEST_IDENTIFIERS = _config.LOG_RESPONSE_IDENTIFIERS = False


class BoundedSocket(AssociationSocket):
    """A socket that reads no more than was allowed.

    Attributes:
        overflowed: Whether more came.
    """

    _left_bytes: int = MAX_PDU_BYTES
    overflowed: bool = False

    def allow(self, count: int) -> None:
        """Set how many bytes may come from now on, protocol included."""
        self._left_bytes, self.overflowed = count, False

    def recv(self, nr_bytes: int) -> bytearray:
        """Read a whole piece, as its user expects.

        Raises:
            OSError: it is too large; the association ends.
        """
        if nr_bytes > min(MAX_PDU_BYTES, self._left_bytes):
            self.overflowed = True
            raise OSError("the archive sends more than was allowed")
        self._left_bytes -= nr_bytes
        return super().recv(nr_bytes)

    def end(self) -> None:
        """End the thread that reads, and close what pynetdicom leaves open."""
        current = self.socket
        self.assoc.dul.kill_dul()
        if current is not None:
            with contextlib.suppress(OSError):  # not connected, or not any more
                current.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits for bytes
        if self.assoc.dul.is_alive():
            self.assoc.dul.join(_END_S)
        if current is not None:
            current.close()

    def _shutdown_socket(self) -> None:
        """Close it also where it was never connected, which pynetdicom leaves out."""
        current = self.socket
        super()._shutdown_socket()
        if current is not None:
            current.close()


class Asker(AE):
    """An application entity whose one association reads through ``line``."""

    line: BoundedSocket

    def _create_socket(
        self,
        assoc: Association,
        address: AddressInformation,
        tls_args: tuple[ssl.SSLContext, str] | None,
    ) -> AssociationSocket:
        self.line = BoundedSocket(assoc, address=address)
        self.line.tls_args = tls_args
        return self.line
