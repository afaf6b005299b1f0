"""The one file inside a multipart answer, copied as it comes; memory stays at one piece.

Source:
    RFC 2046 section 5.1.1 (boundaries); DICOM PS3.18 section 8.6.1.2 (multipart/related).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from email.message import Message
from typing import Final

_MAX_HEADER_BYTES: Final = 64 << 10


class MultipartError(ValueError):
    """The answer is not one whole part between boundaries."""


def boundary_of(content_type: str) -> bytes | None:
    """The boundary that a Content-Type names; None: the body is not multipart.

    Raises:
        MultipartError: multipart, and no boundary is named.
    """
    message = Message()
    message["Content-Type"] = content_type
    if message.get_content_maintype() != "multipart":
        return None
    boundary = message.get_boundary()
    if not boundary or len(boundary) > 70 or not boundary.isascii():
        raise MultipartError("no boundary")
    return boundary.encode("ascii")


def copy_single_part(
    pieces: Iterator[bytes], boundary: bytes, write: Callable[[bytes], None]
) -> None:
    r"""Copy the content of the only part.

    Args:
        pieces: The body, cut anywhere.
        boundary: As the Content-Type names it.
        write: Gets the content, in pieces.

    Raises:
        MultipartError: no part, more than one, or the body ends too early. What was written
            until then is worthless.

    Example:
        >>> body = b"--x\r\nContent-Type: a/b\r\n\r\nhello\r\n--x--"
        >>> copy_single_part(iter([body[:30], body[30:]]), b"x", lambda piece: print(piece))
        b'hello'
    """
    delimiter = b"\r\n--" + boundary
    held = _after_header(pieces, delimiter)
    while (end := held.find(delimiter)) < 0:
        sure = len(held) - len(delimiter) + 1  # what follows may be the delimiter's beginning
        if sure > 0:
            write(bytes(held[:sure]))
            del held[:sure]
        held += _next(pieces)
    if end:
        write(bytes(held[:end]))
    del held[: end + len(delimiter)]
    while len(held) < 2:
        held += _next(pieces)
    if held[:2] != b"--":
        raise MultipartError("more than one part")


def _after_header(pieces: Iterator[bytes], delimiter: bytes) -> bytearray:
    """Read to the end of the first part's header; what was read beyond it."""
    held = bytearray(b"\r\n")  # the first boundary may stand at the very beginning
    while (start := held.find(delimiter)) < 0 or (end := held.find(b"\r\n\r\n", start)) < 0:
        if len(held) > _MAX_HEADER_BYTES:
            raise MultipartError("no part")
        held += _next(pieces)
    if held[start + len(delimiter) :].startswith(b"--"):
        raise MultipartError("no part")
    del held[: end + 4]
    return held


def _next(pieces: Iterator[bytes]) -> bytes:
    for piece in pieces:
        return piece
    raise MultipartError("it ends too early")
