"""Attacks on the guard's TLS, as testssl.sh makes them.

Real sockets against the real guard. The SuperLink behind it is a double that notes what it is
asked: what it was not asked did not get through. ``test_guard_and_flower.py`` has a real one.
"""

from __future__ import annotations

import socket
import ssl
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.guard_callers import Caller, ended, read_reply
from tests.support.guard_house import GuardHouse

pytestmark = pytest.mark.network


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardHouse]:
    with GuardHouse(tmp_path_factory.mktemp("guard")) as house:
        yield house


@pytest.fixture
def site(house: GuardHouse) -> Caller:
    return house.fresh_site()


# ---- TLS -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_old_tls(house: GuardHouse, site: Caller, version: ssl.TLSVersion) -> None:
    tls = site.tls()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        tls.minimum_version = tls.maximum_version = version
    tls.set_ciphers("ALL:@SECLEVEL=0")

    with pytest.raises(OSError):
        site.connect(tls)
    assert house.wait_for("guard.handshake-failed")["reason"] == "UNSUPPORTED_PROTOCOL"


@pytest.mark.parametrize(
    "suite",
    [
        "ECDHE-ECDSA-AES256-SHA384",  # CBC
        "ECDHE-ECDSA-AES128-SHA",
        "AES128-GCM-SHA256",  # no forward secrecy
        "AES256-SHA",
        "ECDHE-ECDSA-NULL-SHA",  # no encryption
        "AECDH-AES256-SHA",  # no certificate
        "ECDHE-ECDSA-AES128-CCM8",  # a short tag
    ],
)
def test_weak_suite(house: GuardHouse, site: Caller, suite: str) -> None:
    tls = site.tls()
    tls.maximum_version = ssl.TLSVersion.TLSv1_2
    tls.set_ciphers(f"{suite}:@SECLEVEL=0")

    with pytest.raises(OSError):
        site.connect(tls)
    assert house.wait_for("guard.handshake-failed")["reason"] == "NO_SHARED_CIPHER"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_strong_tls_serves(house: GuardHouse, site: Caller, version: ssl.TLSVersion) -> None:
    tls = site.tls()
    tls.minimum_version = tls.maximum_version = version
    with site.connect(tls) as link:
        link.sendall(site.request())

        assert read_reply(link).status == 200
        assert link.compression() is None
        name = link.cipher()[0]  # type: ignore[index]  # a handshake was made
        assert "GCM" in name or "CHACHA20" in name


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_session_is_not_taken_up_again(
    house: GuardHouse, site: Caller, version: ssl.TLSVersion
) -> None:
    tls = site.tls()
    tls.minimum_version = tls.maximum_version = version
    with site.connect(tls) as link:
        link.sendall(site.request())
        assert read_reply(link).status == 200
        session = link.session
    assert session is None or not session.has_ticket
    plain = socket.create_connection(("127.0.0.1", house.port), 10)
    with tls.wrap_socket(plain, server_hostname="127.0.0.1", session=session) as again:
        if again.session_reused:  # by 1.2's session number: then it is not served
            assert ended(again)
            assert house.wait_for("guard.no-site")


def test_renegotiation(house: GuardHouse, site: Caller, tmp_path: Path) -> None:
    # s_client sends a new handshake for a line that is "R".
    assert site.files is not None
    done = subprocess.run(
        [
            "openssl", "s_client", "-connect", f"127.0.0.1:{house.port}", "-tls1_2",
            "-cert", str(site.files[0]), "-key", str(site.files[1]),
            "-CAfile", str(site.authority), "-verify_return_error", "-legacy_renegotiation",
        ],
        input=b"R\n", capture_output=True, timeout=20, check=False,
    )  # fmt: skip
    text = (done.stdout + done.stderr).decode()

    assert "RENEGOTIATING" in text
    assert "no renegotiation" in text
