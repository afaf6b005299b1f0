"""What a job asks of an archive, whichever protocol it speaks.

``DicomWebArchive`` and ``DimseArchive`` do this over the network; tests do it in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Protocol

from medfed.client.scans.pacs.plan import Instance, Study
from medfed.common.errors import ScanError, TransportError

Ask = Callable[[], None]
"""Called before every request; waits as long as the pace asks for."""


class Reason(StrEnum):
    """Why one object was not pulled; the value is what the admin reads."""

    GONE = "the archive does not have it any more"
    NOT_SENT = "the archive could not send it"
    TOO_LARGE = "larger than max_object_mib"
    NOT_DICOM = "what the archive sent is not a DICOM file"
    OTHER_OBJECT = "the archive sent another object"


class NotPulledError(ScanError):
    """One object could not be pulled; the others can.

    Attributes:
        reason: Why.
    """

    def __init__(self, reason: Reason) -> None:
        self.reason = reason
        super().__init__(
            f"an object was not pulled: {reason.value}.",
            advice="run the pull again later; it asks only for what is missing.",
        )


def broken_link(archive: str, found: str) -> TransportError:
    """The error for an archive that does not answer as it ought to.

    Args:
        archive: Its name or address.
        found: What it does instead.
    """
    return TransportError(
        f"the archive {archive} {found}.",
        advice="check its address in pacs.toml and ask its keepers; a later run goes on.",
    )


class Sink(Protocol):
    """Where a file's bytes go, bounded and at the agreed pace."""

    limit_bytes: int
    """Most that it takes."""

    def write(self, piece: bytes) -> None:
        """Take the next bytes.

        Raises:
            NotPulledError: more than the limit.
        """


class Archive(Protocol):
    """An archive that is asked one thing at a time.

    Every method raises TransportError where the archive cannot be reached, answers with an
    error or not as its protocol says, and TrustError where one of the two does not accept who
    the other is.
    """

    def studies(self, keys: Mapping[str, str]) -> Iterator[Study]:
        """Search studies by DICOM keyword."""

    def instances(self, study: Study, wanted: Callable[[str], bool]) -> Iterator[Instance]:
        """The objects of a study, of those series whose modality is wanted."""

    def fetch(self, instance: Instance, sink: Sink) -> None:
        """Write one object to the sink, as a DICOM file, in the syntax it is stored in.

        Raises:
            NotPulledError: why this one cannot be had.
        """

    def hang_up(self) -> None:
        """Close what connections there are; the next request opens them again."""


def text_of(value: object) -> str:
    """A text as an archive gives it: the first of several, without blanks around it."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = value[0] if value else None
    return "" if value is None else str(value).strip()


def number_of(value: object, default: int = 0) -> int:
    """A number as an archive gives it; the default where it is none."""
    try:
        return int(text_of(value) or default)
    except ValueError:
        return default
