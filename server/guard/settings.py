"""What a guard is told: where it listens, whom it trusts, and its limits.

A file of JSON that the hub writes when it starts the guard. A name that is not known is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medfed.common.errors import ConfigError

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]

OBJECT_BYTES: Final = 16 * 2**20
"""Largest body by default. Flower cuts an array into objects of 5 MiB and sends each in a request
of its own, so that a model of 700 MB is about 140 requests; its SuperLink holds a body whole."""


class Limits(BaseModel):
    """What one caller, one address and all callers together may use.

    Attributes:
        handshake_s: For TCP and TLS handshake together, before a connection is dropped.
        half_open: Handshakes that go on at once. One more ends the oldest: who finishes his
            handshake in time gets in, however many never do.
        half_open_per_address: The same for one IPv4 address or one IPv6 network of 64 bits.
        handshakes_per_s: New connections per second of one address; five seconds' worth at once.
        connections: Connections with a certificate, in all.
        connections_per_certificate: The same for one certificate. One more ends the one that has
            been idle longest; where none is idle, the new one is refused.
        requests_per_s: Requests per second of one certificate; twice as many at once. More of
            them wait.
        head_bytes: Request line and headers together.
        head_s: For a head to arrive, from its first byte.
        body_bytes: Body of a request to Flower.
        grace_s: A body may be slower than ``bytes_per_s`` for so long; so may whoever receives.
        bytes_per_s: A body arrives, and an answer is taken, at this pace or faster.
        idle_s: Between two requests on one connection. Above the 5 s after which Flower's node
            drops a connection itself.
        answer_s: For the SuperLink to answer.
        hold_s: An empty answer to "is there a message for me?" is held back so long while the
            guard asks on; 0: never. Below the 30 s for which Flower's node waits.
        look_s: Between two such questions.
        sweep_s: Between two looks for connections of revoked or expired certificates, idle or
            not, and for new files.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    handshake_s: Seconds = 10.0
    half_open: Count = 512
    half_open_per_address: Count = 32
    handshakes_per_s: Seconds = 20.0
    connections: Count = 512
    connections_per_certificate: Count = 16
    requests_per_s: Seconds = 100.0
    head_bytes: Annotated[int, Field(ge=1024, le=2**20)] = 16 * 2**10
    head_s: Seconds = 10.0
    body_bytes: Count = OBJECT_BYTES
    grace_s: Seconds = 10.0
    bytes_per_s: Count = 1024
    idle_s: Seconds = 75.0
    answer_s: Seconds = 60.0
    hold_s: Annotated[float, Field(ge=0, le=25)] = 20.0
    look_s: Seconds = 0.5
    sweep_s: Annotated[float, Field(gt=0, le=10)] = 5.0


class GuardSettings(BaseModel):
    """Where a guard listens, whom it trusts, where it forwards to.

    Attributes:
        host: Address to listen on.
        port: Port to listen on; 0: any that is free.
        authority: File with the certificate authorities that may have signed a caller's
            certificate (PEM; two of them while the root is changed).
        certificate: File with the server's certificate.
        key: File with its key.
        revocations: Folder with the study's keys and the signed revocation list.
        superlink_host: Where Flower's SuperLink listens; loopback.
        superlink_port: Its port.
        superlink_authority: File with the authority of the SuperLink's certificate.
        limits: What callers may use.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str
    port: Annotated[int, Field(ge=0, le=65535)]
    authority: Path
    certificate: Path
    key: Path
    revocations: Path
    superlink_host: str = "127.0.0.1"
    superlink_port: Annotated[int, Field(ge=1, le=65535)]
    superlink_authority: Path
    limits: Limits = Limits()


def read_settings(path: Path) -> GuardSettings:
    """Read a guard's settings.

    Args:
        path: File of JSON, as ``GuardSettings.model_dump_json`` writes it.

    Raises:
        ConfigError: it cannot be read, or is not what ``GuardSettings`` says.
    """
    try:
        return GuardSettings.model_validate_json(path.read_bytes())
    except OSError as error:
        found = str(error.strerror)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        found = f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}"
    raise ConfigError(
        f"{path}: the guard's settings cannot be used ({found}).",
        advice="start the guard through `medfed server`, which writes them.",
    )
