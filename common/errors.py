"""Every error medfed raises on purpose, as one tree.

Catch by what you can do about it, not by where it came from::

    MedfedError                  exit code
    ├── ConfigError             10   the operator edits a file and retries
    ├── PrivacyError            11   training stops; retrying cannot help
    │   └── LedgerError              the recorded spend cannot be trusted
    │       └── LedgerMismatchError      it is older than, or other than, what was released
    ├── UpdateRejectedError     12   one site's update is dropped; the round goes on
    ├── CohortError             13   too few valid updates; the round is abandoned
    ├── TransportError          14   the link failed; retry with back-off
    ├── TrustError              15   a certificate, signature or identity is wrong
    ├── ScanError               16   scans or labels cannot be used; the admin looks at the data
    ├── ApprovalError           17   the site's policy or a missing approval forbids it
    │   └── NotNowError              the site pauses, or is outside its hours
    └── IncompleteRunError      18   finished, but not as planned: a site lost, a round skipped

Exit code 0 is success, 1 a defect of medfed, 2 a wrong command line, 130 an interruption.
Messages never carry patient data, tensor values, file contents or key material.
"""

from __future__ import annotations


class MedfedError(Exception):
    """Base of every error raised deliberately by medfed.

    Attributes:
        advice: One sentence naming the next step for the person who reads it.
    """

    exit_code = 1

    def __init__(self, message: str, *, advice: str = "") -> None:
        super().__init__(message)
        self.advice = advice

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message}\n  Next step: {self.advice}" if self.advice else message


class ConfigError(MedfedError):
    """A study file, ``site.toml`` or folder set-up is wrong; the operator edits it."""

    exit_code = 10


class PrivacyError(MedfedError):
    """A privacy guarantee would not hold; training must stop."""

    exit_code = 11


class LedgerError(PrivacyError):
    """The recorded spend cannot be trusted, or a paid round was asked for again."""


class LedgerMismatchError(LedgerError):
    """The ledger is behind what was released, or went another way: a backup, or a copy."""


class UpdateRejectedError(MedfedError):
    """One site's update cannot be used; the round goes on without it."""

    exit_code = 12


class CohortError(MedfedError):
    """Too few sites or valid updates; the round is abandoned."""

    exit_code = 13


class TransportError(MedfedError):
    """A link, a port or a server did not answer."""

    exit_code = 14


class TrustError(MedfedError):
    """A certificate, signature or identity is wrong."""

    exit_code = 15


class ScanError(MedfedError):
    """Scans or labels cannot be used. Told to the site's admin only."""

    exit_code = 16


class ApprovalError(MedfedError):
    """The site's own policy forbids it, or its approval is missing."""

    exit_code = 17


class NotNowError(ApprovalError):
    """The site trains nothing at this moment, by its own policy; later it may."""


class IncompleteRunError(MedfedError):
    """The run finished, but not as planned: a site was lost or a round skipped."""

    exit_code = 18
