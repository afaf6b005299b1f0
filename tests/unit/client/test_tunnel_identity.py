"""What the tunnel reads from the site's folder, and what it does not leave behind."""

from __future__ import annotations

import datetime
import os
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from medfed.client.enrolment import now
from medfed.client.tunnel_identity import Identity, local_side, read_outward
from medfed.client.tunnel_peers import is_own, owner, require_table
from medfed.common.errors import ConfigError, MedfedError, TrustError
from medfed.common.trust.keys import new_node_key
from tests.support.tunnels import House, house


@pytest.fixture
def place(tmp_path: Path) -> Iterator[House]:
    with house(tmp_path) as made:
        yield made


# ---- towards the server --------------------------------------------------------------------------
def test_server_is_the_one_that_the_approval_names_and_must_prove_it(place: House) -> None:
    outward = read_outward(place.root)

    assert (outward.address, outward.host) == (place.address, "localhost")
    assert outward.port == place.server.port
    assert outward.tls.minimum_version == ssl.TLSVersion.TLSv1_3
    assert outward.tls.verify_mode == ssl.CERT_REQUIRED
    assert outward.tls.check_hostname
    assert len(outward.tls.get_ca_certs()) == 1  # the coordinator's; none of the machine's
    lasts = outward.expires - now()
    assert datetime.timedelta(days=89) < lasts < datetime.timedelta(days=91)


def test_nothing_of_the_key_is_left_open_or_written(
    place: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = place.root / "keys.log"
    monkeypatch.setenv("SSLKEYLOGFILE", str(log))
    files, handles = set(place.root.rglob("*")), set(os.listdir("/proc/self/fd"))

    outward = read_outward(place.root)
    local_side()

    assert outward.tls.keylog_filename is None
    assert set(place.root.rglob("*")) == files
    assert len(os.listdir("/proc/self/fd")) == len(handles)


def _server_of_site_toml(root: Path) -> None:
    file = root / "site.toml"
    file.write_text(file.read_text().replace("localhost", "other.example"))


def _other_key(root: Path) -> None:
    (root / "keys" / "node_key").unlink()
    (root / "keys" / "node_key.pub").unlink()
    new_node_key(root / "keys")


@pytest.mark.parametrize(
    ("spoil", "kind", "found"),
    [
        (lambda root: (root / "keys" / "node_key").chmod(0o640), ConfigError, "mode 0640"),
        (lambda root: (root / "trust" / "site.pem").unlink(), ConfigError, "site.pem"),
        (lambda root: (root / "trust" / "ca.pem").unlink(), ConfigError, "ca.pem"),
        (lambda root: (root / "trust" / "approval.json").unlink(), ConfigError, "no approval"),
        (_server_of_site_toml, ConfigError, "names the server other.example"),
        (_other_key, TrustError, "over another key"),
        (lambda root: (root / "trust" / "site.pem").write_text("no"), TrustError, "site.pem"),
    ],
)
def test_file_that_is_wrong_is_named(
    place: House, spoil: object, kind: type[MedfedError], found: str
) -> None:
    assert callable(spoil)
    spoil(place.root)

    with pytest.raises(kind, match=found):
        read_outward(place.root)


@pytest.mark.parametrize(
    ("days", "found"),
    # Valid from 10 minutes before its issue, for 90 days.
    [(-1, "is valid from .* the clock of this machine says"), (91, "expired on")],
)
def test_clock_outside_the_certificates_dates_is_told(place: House, days: int, found: str) -> None:
    with pytest.raises(TrustError, match=found):
        read_outward(place.root, clock=lambda: now() + datetime.timedelta(days=days))


def test_certificate_of_another_site_is_refused(tmp_path: Path) -> None:
    with house(tmp_path) as place:
        file = place.root / "site.toml"
        file.write_text(file.read_text().replace('site = "A"', 'site = "B"'))
        with pytest.raises(TrustError, match="another site's certificate"):
            read_outward(place.root)


def test_new_files_are_taken_up_once_and_bad_ones_leave_what_was(place: House) -> None:
    identity = Identity(place.root)
    first = identity.outward
    assert not identity.refresh()

    place.renew()
    assert identity.refresh()
    assert not identity.refresh()
    assert identity.generation == 1
    second = identity.outward
    assert second is not first

    (place.root / "trust" / "ca.pem").write_text("no")
    with pytest.raises(TrustError, match=r"ca\.pem"):
        identity.refresh()
    assert not identity.refresh()
    assert identity.outward is second


# ---- towards the node ----------------------------------------------------------------------------
def test_each_start_has_a_certificate_of_its_own_for_loopback_only() -> None:
    tls, pem = local_side()
    other, other_pem = local_side()

    assert pem != other_pem
    assert "PRIVATE" not in pem.decode()
    _shake(tls, pem, "127.0.0.1")
    _shake(tls, pem, "localhost")
    with pytest.raises(ssl.SSLCertVerificationError, match="self-signed"):
        _shake(other, pem, "127.0.0.1")
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        _shake(tls, pem, "hub.example")


def _shake(tls: ssl.SSLContext, trusted: bytes, host: str) -> None:
    """A handshake in memory, checked as Flower's node does."""
    caller = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    caller.load_verify_locations(cadata=trusted.decode())
    to_server, to_caller = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = tls.wrap_bio(to_server, to_caller, server_side=True)
    client = caller.wrap_bio(to_caller, to_server, server_hostname=host)
    for _ in range(4):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                pass


# ---- whose connection ----------------------------------------------------------------------------
@pytest.mark.network
def test_connection_of_the_same_user_is_own_until_it_ends() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        caller = socket.create_connection(server.getsockname())
        taken, _ = server.accept()
        with taken:
            assert is_own(taken)
            caller.close()
            assert owner(("127.0.0.1", 1), server.getsockname()) is None


# Address and port as Linux writes them on a little-endian machine: 127.0.0.1 is 0100007F.
ROW = "   0: 0100007F:{far:04X} 0100007F:{near:04X} {state} 0:0 00:0 00000000 {user:5d} 0 1 1 0\n"


@pytest.mark.network
@pytest.mark.parametrize(
    ("state", "user", "is_let_in"),
    [("01", 0, True), ("01", 1, False), ("06", 0, False), ("07", 0, False)],
)
def test_only_a_row_of_this_user_with_an_open_socket_lets_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, user: int, is_let_in: bool
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    table = tmp_path / "tcp"
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()) as caller:
            taken, _ = server.accept()
            far, near = caller.getsockname()[1], server.getsockname()[1]
            table.write_text("head\n" + ROW.format(far=far, near=near, state=state, user=user))
            with taken:
                assert is_own(taken, table) == is_let_in
                table.write_text("head\n" + ROW.format(far=near, near=far, state="01", user=0))
                assert not is_own(taken, table)  # the row of our own end says nothing
                table.write_text("head\n")
                assert not is_own(taken, table)
                assert not is_own(taken, tmp_path / "missing")


def test_without_the_kernels_table_there_is_no_tunnel(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run medfed on Linux"):
        require_table(tmp_path / "tcp")
