"""``medfed client`` against a stock SuperLink: TLS, node authentication, real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from medfed.client.site_root import SiteRoot
from medfed.common.processes import free_port
from tests.support.flower_hub import FlowerHub, wait_until
from tests.support.sites import STUDY, make_ready_site, make_site

pytestmark = [pytest.mark.network, pytest.mark.slow]

MEDFED = (sys.executable, "-m", "medfed.deploy.cli")
UNKNOWN = {
    "digest": "a" * 64,
    "run": "r-1",
    "round": "1",
    "purpose": "train",
}  # a study that nobody approved


class Client:
    """One ``medfed client``, followed through what it tells the admin."""

    def __init__(self, site: SiteRoot, folder: Path) -> None:
        self.site, self.output = site, folder / "client.out"
        with self.output.open("a") as file:
            self.process = subprocess.Popen(
                [*MEDFED, "client", "--site", site.name, "--root", str(site.folder)],
                stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def wait_for(self, text: str, times: int = 1) -> None:
        wait_until(
            lambda: self.output.read_text().count(text) >= times or self.process.poll() is not None,
            f"{text!r} is told {times} times",
            limit_s=120.0,
        )
        assert self.output.read_text().count(text) >= times, self.output.read_text()

    def interrupt(self) -> int:
        """Press Ctrl-C in the client's terminal; its exit code."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(30.0)


def processes_of(site: SiteRoot) -> dict[int, str]:
    """Process id -> command line, of everything that names the site's folder or its FLWR_HOME."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            line, environment = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
        except OSError:
            continue
        if str(site.folder).encode() in line + environment:
            found[int(entry.name)] = line.replace(b"\0", b" ").decode()
    return found


def medfed(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*MEDFED, *arguments], capture_output=True, text=True, timeout=120)


def refused(site: SiteRoot, code: int, says: Sequence[str], retry_for: str = "0") -> None:
    """``medfed client`` ends with a code and a message, without a traceback or a process."""
    done = medfed(
        "client", "--site", site.name, "--root", str(site.folder), "--retry-for", retry_for
    )

    assert done.returncode == code, done.stderr
    for text in (*says, "Next step:"):
        assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert processes_of(site) == {}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlowerHub]:
    with FlowerHub(tmp_path_factory.mktemp("hub")) as started:
        yield started


@pytest.fixture(scope="module")
def client(hub: FlowerHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """An enrolled site whose client runs; the last test of this file ends it."""
    folder = tmp_path_factory.mktemp("client")
    site = make_ready_site(folder, server=hub.address, ca=hub.ca)
    hub.enrol(site.public_key)
    started = Client(site, folder)
    yield started
    if started.process.poll() is None:
        started.process.kill()
        started.process.wait()


def test_a_site_without_an_approved_study_does_not_join(tmp_path: Path) -> None:
    refused(make_site(tmp_path), 17, ["no study is approved"])


def test_an_empty_scan_folder_is_told_before_joining(tmp_path: Path) -> None:
    site = make_ready_site(tmp_path)  # the scans went away after the approval
    site.scans.unlink()
    site.scans.mkdir()
    (site.scans / "rest").touch()
    refused(site, 16, [str(site.scans)])


def test_a_server_that_does_not_answer_is_tried_again_and_then_told(tmp_path: Path) -> None:
    site = make_ready_site(tmp_path, server=f"127.0.0.1:{free_port()}")
    refused(site, 14, ["connection refused", "Tried 2 times"], retry_for="0.5")


def test_the_wrong_root_is_told(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    done = medfed("client", "--site", "B", "--root", str(site.folder))

    assert (done.returncode, "is the root of site 'A'" in done.stderr) == (10, True)


def test_a_study_that_does_not_list_the_site_cannot_be_approved(tmp_path: Path) -> None:
    site = make_site(tmp_path, name="C")
    study = tmp_path / "study.toml"
    study.write_text(STUDY)
    done = medfed("site", "approve", str(study), "--root", str(site.folder))

    assert done.returncode == 10
    assert "'C' is not in study" in done.stderr


def test_another_authority_is_refused(hub: FlowerHub, tmp_path: Path) -> None:
    refused(make_ready_site(tmp_path, server=hub.address), 15, ["not signed by the authority"])


def test_a_site_that_is_not_enrolled_is_refused(hub: FlowerHub, tmp_path: Path) -> None:
    site = make_ready_site(tmp_path, server=hub.address, ca=hub.ca)
    refused(site, 15, ["does not know site 'A'", "node_key.pub"])


def test_a_task_reaches_the_worker_and_its_reply_the_server(
    hub: FlowerHub, client: Client, tmp_path: Path
) -> None:
    client.wait_for("worker ready")
    marker = tmp_path / "imported"

    report = hub.start_run({"round": UNKNOWN}, marker=marker)
    wait_until(report.exists, "the run ends")

    assert json.loads(report.read_text()) == [{"error": None, "fact": {"code": "not-approved"}}]
    client.wait_for("is not approved here")  # told to the admin in words, to the server as a code
    imported_by = marker.read_text() if marker.exists() else ""
    assert str(client.site.folder) not in imported_by
    assert not list(client.site.flower.rglob("apps"))  # where Flower unpacks a shipped bundle


def test_an_error_inside_the_app_leaves_as_its_class_name(
    hub: FlowerHub, client: Client, tmp_path: Path
) -> None:
    client.wait_for("worker ready")

    report = hub.start_run({}, marker=tmp_path / "imported")  # a message without its round
    wait_until(report.exists, "the run ends")

    assert json.loads(report.read_text()) == [{"error": "KeyError 1", "fact": {}}]


def test_a_killed_worker_comes_back_and_answers(
    hub: FlowerHub, client: Client, tmp_path: Path
) -> None:
    client.wait_for("worker ready")
    for process, line in processes_of(client.site).items():
        if "medfed.client.worker" in line and "process_keeper" not in line:
            os.kill(process, signal.SIGKILL)
    client.wait_for("worker ready", times=2)

    report = hub.start_run({"round": UNKNOWN}, marker=tmp_path / "imported")
    wait_until(report.exists, "the run ends")

    assert json.loads(report.read_text())[0]["fact"] == {"code": "not-approved"}


def test_kill_9_of_the_client_leaves_no_orphan_and_the_site_can_join_again(
    client: Client,
) -> None:
    client.wait_for("worker ready")
    client.process.kill()
    client.process.wait()
    wait_until(lambda: processes_of(client.site) == {}, "everything of the site ends", limit_s=12)

    again = Client(client.site, client.output.parent)
    client.process = again.process
    again.wait_for("joined", times=2)


def test_ctrl_c_ends_everything(client: Client) -> None:
    client.wait_for("joined")

    assert client.interrupt() == 130
    assert processes_of(client.site) == {}
    assert "Traceback" not in client.output.read_text()
