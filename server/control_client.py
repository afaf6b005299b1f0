"""The coordinator's end of the control service.

The coordinator's folder (``coordinator/`` of the server's data root) says where the server
is and holds the certificate that it asks for. A person's folder that ``medfed enrol role`` wrote
holds a certificate only; the service is then asked on this machine, at its default port.
"""

from __future__ import annotations

import socket
import ssl
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import grpc
from cryptography import x509
from google.protobuf.message import Message

from medfed.common.errors import ConfigError, MedfedError, TransportError, TrustError
from medfed.server.control_pb2 import (
    EnrolReply,
    EnrolRequest,
    LaunchReply,
    LaunchRequest,
    RunReply,
    RunRequest,
)
from medfed.server.control_wire import SERVICE, error_from_metadata, status_from_wire
from medfed.server.journal import RunStatus

Reply = TypeVar("Reply", bound=Message)
CONTROL = "127.0.0.1:8444"
"""Where the control service is asked if nothing says where: its default, or a forwarded port."""

_LIMIT_S = 120.0


class ControlClient:
    """A connection to a server's control service.

    Args:
        access: The coordinator's folder: ``ca.pem``, ``client.pem``, ``client.key``,
            ``server.toml``. The last may be missing in a person's folder.
        control: ``host:port`` of the control service; empty: as ``server.toml`` says.

    Raises:
        ConfigError: the folder is not complete, or ``control`` is no address.
    """

    def __init__(self, access: Path, control: str = "") -> None:
        self._access = access
        if control and not control.rpartition(":")[2].isdigit():
            raise ConfigError(
                f"the control service: {control[:80]!r} is no address.",
                advice="give host:port, as in 127.0.0.1:8444.",
            )
        try:
            ca, key, certificate = (
                (access / name).read_bytes() for name in ("ca.pem", "client.key", "client.pem")
            )
            self._again = "copy the coordinator folder from this server again."
            if _is_persons(certificate):
                self._again = "ask the coordinator for access anew (`medfed enrol role`)."
            self.address = control or _written_address(access, certificate)
            self._host, _, port = self.address.rpartition(":")
            self._port = int(port)
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(
                f"{access}: is not a complete coordinator folder ({type(error).__name__}); it "
                "needs ca.pem, client.pem, client.key and server.toml.",
                advice="give the folder `coordinator` of the server's data root, a copy of it, or "
                "the folder that `medfed enrol role` wrote.",
            ) from error
        credentials = grpc.ssl_channel_credentials(ca, key, certificate)
        options = (("grpc.enable_http_proxy", 0),)
        self._channel = grpc.secure_channel(self.address, credentials, options=options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up. What was started goes on."""
        self._channel.close()

    def enrol(self, site: str, public_key: bytes, *, replace: bool = False) -> tuple[str, bool]:
        """Let a site in.

        Args:
            site: Its name in the study files.
            public_key: Its ``node_key.pub``.
            replace: Whether another key of this site is thrown out.

        Returns:
            The key's fingerprint, and whether the site was enrolled with it already.

        Raises:
            MedfedError: what the server refused, in its own class; ``TransportError`` and
                ``TrustError`` when it is not reached.
        """
        request = EnrolRequest(site=site, public_key=public_key, replace=replace)
        reply = self._ask("Enrol", request, EnrolReply)
        return reply.fingerprint, reply.was_enrolled

    def launch(self, study: bytes) -> tuple[str, bool]:
        """Start a study, or find the run that is going on.

        Args:
            study: Its canonical form.

        Returns:
            The run's name, and whether it was going on already.

        Raises:
            MedfedError: as ``enrol``.
        """
        reply = self._ask("Launch", LaunchRequest(study=study), LaunchReply)
        return reply.run, reply.was_running

    def status(self, run: str = "") -> RunStatus:
        """Say where a run stands; the newest if ``run`` is empty.

        Raises:
            MedfedError: as ``enrol``.
        """
        return status_from_wire(self._ask("Status", RunRequest(run=run), RunReply))

    def stop(self, run: str = "") -> RunStatus:
        """Stop a run, and say where it stands then.

        Raises:
            MedfedError: as ``enrol``.
        """
        return status_from_wire(self._ask("Stop", RunRequest(run=run), RunReply))

    def watch(self, run: str = "") -> Iterator[RunStatus]:
        """Give a run's status at every change, until it ends or the server does.

        Raises:
            MedfedError: as ``enrol``.
        """
        call = self._channel.unary_stream(
            f"/{SERVICE}/Watch",
            request_serializer=RunRequest.SerializeToString,
            response_deserializer=RunReply.FromString,
        )(RunRequest(run=run))
        try:
            for reply in call:
                yield status_from_wire(reply)
        except grpc.RpcError as error:
            raise self._explained(error) from error
        finally:
            call.cancel()

    def _ask(self, method: str, request: Message, reply: type[Reply]) -> Reply:
        call = self._channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=reply.FromString,
        )
        try:
            return call(request, timeout=_LIMIT_S)
        except grpc.RpcError as error:
            raise self._explained(error) from error

    def _explained(self, error: grpc.RpcError) -> MedfedError:
        assert isinstance(error, grpc.Call)
        ours = error_from_metadata(error.trailing_metadata() or ())
        if ours is not None:
            return ours
        if error.code() == grpc.StatusCode.UNAVAILABLE:
            return self._why_unavailable()
        return TransportError(
            f"the server at {self.address} did not finish its answer ({error.code().name}).",
            advice="look at the server's own output, then ask again.",
        )

    def _why_unavailable(self) -> MedfedError:
        """Tell a server that is away from one that does not trust us, or we it."""
        context = ssl.create_default_context(cafile=str(self._access / "ca.pem"))
        context.load_cert_chain(self._access / "client.pem", self._access / "client.key")
        context.set_alpn_protocols(["h2"])
        try:
            with (
                socket.create_connection((self._host.strip("[]"), self._port), 5.0) as plain,
                context.wrap_socket(plain, server_hostname=self._host.strip("[]")) as link,
            ):
                if not link.recv(1):  # a server that accepts us speaks first, as HTTP/2 asks
                    raise ConnectionResetError
        except ssl.SSLCertVerificationError as error:
            return TrustError(
                f"the server at {self.address} shows a certificate that {self._access}/ca.pem did "
                f"not sign ({error.verify_message}).",
                advice=self._again,
            )
        except (ssl.SSLError, ConnectionResetError):
            return TrustError(
                f"the server at {self.address} does not accept the certificate in {self._access}.",
                advice=self._again,
            )
        except OSError as error:
            return TransportError(
                f"the server's control service does not answer at {self.address} "
                f"({error.strerror or type(error).__name__}).",
                advice="start `medfed server`, or forward its control port to this machine.",
            )
        return TransportError(
            f"the connection to the server at {self.address} was lost.",
            advice="the rounds go on without it; ask again with `medfed status`.",
        )


def _written_address(access: Path, certificate: bytes) -> str:
    """What ``server.toml`` says; a person's folder may have none."""
    path = access / "server.toml"
    if not path.exists() and _is_persons(certificate):
        return CONTROL
    return str(tomllib.loads(path.read_text())["control"])


def _is_persons(certificate: bytes) -> bool:
    """Whether a certificate names a person's role, as those of ``medfed enrol role`` do."""
    found = x509.load_pem_x509_certificate(certificate).extensions
    try:
        names = found.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    return any(uri.startswith("urn:medfed:role:") for uri in uris)
