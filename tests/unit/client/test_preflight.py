from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest

from medfed.client.preflight import Notice, look_at_scans, preflight, reach_server
from medfed.client.site_root import SiteRoot
from medfed.common.errors import (
    ApprovalError,
    ConfigError,
    ScanError,
    TransportError,
    TrustError,
)
from medfed.common.processes import free_port
from medfed.common.trust.certificates import issue_server_certificate, new_authority
from tests.support.sites import make_ready_site, make_site, make_study, write_scans
from tests.support.tls_server import health_server

pytestmark = pytest.mark.network


class FakeTime:
    """Waiting takes no time, and is remembered."""

    def __init__(self) -> None:
        self.now, self.pauses = 0.0, list[float]()

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def trust(tmp_path: Path) -> Path:
    new_authority(tmp_path / "trust")
    issue_server_certificate(tmp_path / "trust", [])
    return tmp_path / "trust"


def reach(site: SiteRoot, *, retry_for_s: float = 0.0) -> tuple[list[Notice], list[float]]:
    told, watch = list[Notice](), FakeTime()
    reach_server(
        site, told.append, retry_for_s=retry_for_s, sleep=watch.sleep, clock=lambda: watch.now
    )
    return told, watch.pauses


def test_the_coordinators_server_is_recognised(tmp_path: Path, trust: Path) -> None:
    with health_server(trust) as address:
        told, _ = reach(make_site(tmp_path, server=address, ca=trust / "ca.pem"))

    assert told == [Notice("state", f"server {address} answers and is the coordinator's")]


def test_a_server_under_another_authority_is_refused_at_once(tmp_path: Path, trust: Path) -> None:
    with health_server(trust) as address:
        site = make_site(tmp_path, server=address)  # with an authority of its own
        with pytest.raises(TrustError, match=r"not signed by the authority in .*trust/ca\.pem"):
            reach(site, retry_for_s=60.0)


def test_a_certificate_for_another_host_is_refused(tmp_path: Path, trust: Path) -> None:
    with health_server(trust, host="127.0.0.2") as address:  # certified: localhost, 127.0.0.1
        site = make_site(tmp_path, server=address, ca=trust / "ca.pem")
        with pytest.raises(TrustError, match=r"its certificate is not for '127\.0\.0\.2'"):
            reach(site)


def test_a_server_that_is_not_there_is_tried_again_with_growing_pauses(tmp_path: Path) -> None:
    site = make_site(tmp_path, server=f"127.0.0.1:{free_port()}")
    watch, told = FakeTime(), list[Notice]()

    with pytest.raises(TransportError, match=r"connection refused.*Tried 8 times in 60 s"):
        reach_server(
            site, told.append, retry_for_s=60.0, sleep=watch.sleep, clock=lambda: watch.now
        )
    # doubled from 1 s, never above 15 s, 60 s in all: one try before each and one at the end
    assert watch.pauses == [1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]
    assert all("Trying again in" in notice.text for notice in told)
    assert len(told) == len(watch.pauses)


def test_a_server_that_comes_later_is_reached(tmp_path: Path, trust: Path) -> None:
    port = free_port()
    site = make_site(tmp_path, server=f"127.0.0.1:{port}", ca=trust / "ca.pem")
    told = list[Notice]()

    with contextlib.ExitStack() as stack:

        def sleep(_: float) -> None:
            stack.enter_context(health_server(trust, port=port))

        reach_server(site, told.append, retry_for_s=60.0, sleep=sleep)

    assert ["Trying again" in notice.text for notice in told] == [True, False]


def test_something_else_on_the_port_is_no_server(tmp_path: Path, trust: Path) -> None:
    with health_server(None) as address:
        with pytest.raises(TransportError, match="does not speak TLS"):
            reach(make_site(tmp_path / "1", server=address))
    with health_server(trust, status=404) as address:
        site = make_site(tmp_path / "2", server=address, ca=trust / "ca.pem")
        with pytest.raises(TransportError, match="HTTP status 404"):
            reach(site)


@pytest.mark.parametrize(
    ("offset_s", "says"),
    [(-60.0, "6[01] s ahead of|5[89] s ahead of"), (600.0, "(599|60[01]) s behind")],
)
def test_a_clock_that_would_break_signatures_is_told(
    tmp_path: Path, trust: Path, offset_s: float, says: str
) -> None:
    with health_server(trust, clock_s=time.time() + offset_s) as address:
        site = make_site(tmp_path, server=address, ca=trust / "ca.pem")
        with pytest.raises(TrustError, match=says):
            reach(site)


@pytest.mark.parametrize("offset_s", [-3.0, 200.0])
def test_a_clock_that_is_a_little_off_is_allowed(
    tmp_path: Path, trust: Path, offset_s: float
) -> None:
    with health_server(trust, clock_s=time.time() + offset_s) as address:
        reach(make_site(tmp_path, server=address, ca=trust / "ca.pem"))


def test_scans_are_reported_to_the_admin(tmp_path: Path) -> None:
    study = make_study()
    report = look_at_scans(make_site(tmp_path), study)

    assert report.patients[0] == report.scans[0] == 60  # write_scans: one scan per patient
    assert report.labels == {"dark": 30, "bright": 30}  # written in turn
    held_out = sum(study.split.part_of(str(patient)) == "test" for patient in range(60))
    assert report.patients[1] == 60 - held_out
    assert report.warnings == ()


def test_one_label_only_is_a_warning(tmp_path: Path) -> None:
    scans = write_scans(tmp_path / "one.npz", labels=(1,))

    report = look_at_scans(make_site(tmp_path, scans=scans), make_study())

    assert len(report.warnings) == 1
    assert "labelled 'bright'" in report.warnings[0]


def test_fewer_patients_than_declared_is_a_warning(tmp_path: Path) -> None:
    scans = write_scans(tmp_path / "few.npz", patients=30)

    report = look_at_scans(make_site(tmp_path, scans=scans), make_study())

    assert len(report.warnings) == 1
    assert "fewer than the 40 the study declares" in report.warnings[0]


def test_far_more_patients_than_declared_and_a_large_delta_are_warnings(tmp_path: Path) -> None:
    scans = write_scans(tmp_path / "many.npz", patients=130)
    study = make_study(("delta = 1e-3", "delta = 0.09"))

    report = look_at_scans(make_site(tmp_path, scans=scans), study)

    more, delta = report.warnings
    assert "far more than the 40 the study declares" in more
    assert "the study's delta, 0.09, is above one over the number of patients" in delta
    assert report.layout == "medmnist"


def test_warnings_do_not_keep_a_site_from_joining(tmp_path: Path, trust: Path) -> None:
    scans = write_scans(tmp_path / "few.npz", patients=10, labels=(1,))
    told = list[Notice]()

    with health_server(trust) as address:
        site = make_ready_site(tmp_path, server=address, ca=trust / "ca.pem", scans=scans)
        preflight(site, told.append, retry_for_s=0.0)

    assert [notice.kind for notice in told].count("warning") == 2
    assert "is the coordinator's" in told[-1].text


def test_the_report_shows_nothing_private_in_its_representation(tmp_path: Path) -> None:
    report = look_at_scans(make_site(tmp_path), make_study())

    assert "30" not in repr(report)


@pytest.mark.parametrize("kind", ["missing", "empty", "text"])
def test_scans_that_cannot_be_used_are_refused(tmp_path: Path, kind: str) -> None:
    site = make_ready_site(tmp_path)  # they could be used when it was approved
    site.scans.unlink()
    if kind == "empty":
        site.scans.mkdir()
    if kind == "text":
        site.scans.write_text("no scan")

    with pytest.raises(ScanError, match=r"A\.npz"):
        preflight(site, lambda notice: None, retry_for_s=0.0)


def test_what_is_wrong_first_is_said_first(tmp_path: Path) -> None:
    site = make_site(tmp_path, scans=tmp_path / "missing")  # not approved, no scans, no server

    with pytest.raises(ApprovalError):
        preflight(site, lambda notice: None, retry_for_s=0.0)


def test_a_study_without_this_site_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not in study"):
        look_at_scans(make_site(tmp_path, name="C"), make_study())


def test_a_redirect_is_not_followed(tmp_path: Path, trust: Path) -> None:
    with health_server(trust) as inner:
        elsewhere = {"Location": f"https://{inner}/"}  # would answer, and with status 200
        with health_server(trust, status=302, headers=elsewhere) as address:
            site = make_site(tmp_path, server=address, ca=trust / "ca.pem")
            with pytest.raises(TransportError, match="HTTP status 302"):
                reach(site)


@pytest.mark.parametrize(
    "date",
    ["Mon, 01 Jan 99999 00:00:00 GMT", f"Mon, 01 Jan {'9' * 30} 00:00:00 GMT", "tomorrow", ""],
)
def test_a_date_that_is_none_is_no_date(tmp_path: Path, trust: Path, date: str) -> None:
    with health_server(trust, headers={"Date": date}) as address:
        told, _ = reach(make_site(tmp_path, server=address, ca=trust / "ca.pem"))

    assert "answers and is the coordinator's" in told[-1].text
