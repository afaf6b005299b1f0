"""The hub: ``medfed server``. It starts Flower's SuperLink, lets sites in and starts runs.

Where a coordinator's bundle lies in the data root, the SuperLink listens on loopback only and the
guard stands in front of it; the bundle says which sites are in.

The rounds themselves run in a process that the SuperLink starts (``flower_app.py``); the
hub and they meet in the journal only. So a coordinator may hang up, and the hub may be
slow, and the rounds go on.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from medfed.common.errors import ConfigError, TransportError
from medfed.common.processes import Child, end_children, free_port, require_free_port
from medfed.common.study import Study, study_from_canonical
from medfed.common.trust.private_files import write_private
from medfed.server.control import ControlService
from medfed.server.control_access import ByRole
from medfed.server.data_root import DataRoot
from medfed.server.enrolment import Enrolment
from medfed.server.gatehouse import SUPERLINK_HOST, Gatehouse
from medfed.server.journal import Journal, RunStatus
from medfed.server.roll import Roll, RollKeeper
from medfed.server.superlink import SuperLink

log = logging.getLogger(__name__)

BUNDLE = Path(__file__).with_name("bundle")
_HEALTHY_LIMIT_S = 60.0
_APP_LIMIT_S = 90.0
_APP_LOOK_S = 5.0
_STOP_LIMIT_S = 20.0
_END_LIMIT_S = 6.0
_LOOK_S = 0.1
_CALLED = {"SuperLink": "Flower's SuperLink", "guard": "the guard"}


class Hub:
    """What the control service asks for. Its calls come from several threads.

    Args:
        root: The data root, prepared.
        superlink: A SuperLink that answers.
        journal: The root's journal.
        bundle: Folder of the thin Flower bundle.
    """

    def __init__(
        self, root: DataRoot, superlink: SuperLink, journal: Journal, bundle: Path = BUNDLE
    ) -> None:
        self._root, self._superlink = root, superlink
        self._journal, self._bundle = journal, bundle.absolute()
        self.enrolment = Enrolment(root, superlink)
        self._one_launch_at_a_time = threading.Lock()

    def take_up(self) -> None:
        """Bring Flower and the journal to what the data root says, after a start.

        Raises:
            TransportError: Flower does not answer.
        """
        self.enrolment.take_up()
        for run in self._journal.runs():
            status = self._journal.read(run)
            if not status.ended and status.pid is None:
                self._end(status, "failed", "the server ended while this run was starting", 14)

    def enrol(self, site: str, public_key: bytes, *, replace: bool) -> tuple[str, bool]:
        """Let a site in, as ``Enrolment.approve``.

        Raises:
            ConfigError: the coordinator's bundle says which sites are in, and nothing else does.
        """
        if self._root.guarded:
            raise ConfigError(
                "this server lets in the sites of its coordinator's bundle, and no others.",
                advice="approve the site's request (`medfed enrol approve A.request.pem`), make a "
                "bundle (`medfed enrol server-bundle`) and copy it to the server.",
            )
        return self.enrolment.approve(site, public_key, replace=replace)

    def launch(self, study: bytes) -> tuple[str, bool]:
        """Start a study, or find the run of it that is going on.

        Returns:
            The run's name, and whether it was going on already.

        Raises:
            ConfigError: the study is not in canonical form.
            TransportError: the server app did not start; the run is marked as failed.
        """
        checked = study_from_canonical(study)
        with self._one_launch_at_a_time:
            going_on = self._going_on(checked.digest)
            if going_on is not None:
                return going_on, True
            run = self._root.new_run(checked)
            self._journal.write(_first_status(run, checked))
            try:
                flower_run = self._superlink.start_run(self._bundle, run)
                self._journal.append(run, "launched", {"flower_run": flower_run})
                self._wait_for_app(run, flower_run)
            except TransportError as error:
                self._end(self._journal.read(run), "failed", str(error.args[0]), error.exit_code)
                raise
        log.info("run.launched run=%s", run)
        return run, False

    def status(self, run: str) -> RunStatus:
        """Where a run stands; the newest if ``run`` is empty.

        Raises:
            ConfigError: there is no such run.
        """
        name = run or self._journal.newest()
        if name is None:
            raise ConfigError(
                "no run was launched on this server yet.", advice="start one: `medfed launch`."
            )
        try:
            return self._journal.read(name)
        except KeyError:
            runs = ", ".join(self._journal.runs()[-5:]) or "none"
            raise ConfigError(
                f"run {name[:80]!r} is not known; the newest runs are: {runs}.",
                advice="give one of these names, or none for the newest.",
            ) from None

    def stop(self, run: str) -> RunStatus:
        """Stop a run: ask its rounds, then end them. A run that has ended stays as it is.

        Raises:
            ConfigError: there is no such run.
        """
        status = self.status(run)
        if status.ended:
            return status
        self._journal.request_stop(status.run)
        log.info("run.stop_requested run=%s", status.run)
        if self._wait(lambda: self._journal.read(status.run).ended, _STOP_LIMIT_S):
            return self._journal.read(status.run)
        for event in self._journal.events(status.run):
            if event.event == "launched":
                self._superlink.stop_run(int(event.content["flower_run"]))
        self._end(
            self._journal.read(status.run),
            "stopped",
            f"the rounds did not answer the wish to stop for {_STOP_LIMIT_S:.0f} s and were ended",
            18,
        )
        return self._journal.read(status.run)

    def _going_on(self, digest: str) -> str | None:
        for run in reversed(self._journal.runs()):
            status = self._journal.read(run)
            if status.digest == digest and not status.ended:
                return run
        return None

    def _wait_for_app(self, run: str, flower_run: int) -> None:
        """Wait until the server app has written its first status."""
        deadline = time.monotonic() + _APP_LIMIT_S
        while not self._wait(lambda: self._journal.read(run).pid is not None, _APP_LOOK_S):
            state = self._superlink.run_state(flower_run)
            if state.startswith("finished") or time.monotonic() > deadline:
                if self._journal.read(run).pid is not None:
                    return
                note = self._root.run_folder(run) / "server_app.log"
                text = self._superlink.run_log(flower_run)
                write_private(note, text.encode(), replace=True)
                raise TransportError(
                    f"run {run}: the server app did not start (Flower says {state!r}).",
                    advice=f"read {note} on the server.",
                )

    def _wait(self, condition: Callable[[], bool], limit_s: float) -> bool:
        """Wait for a condition; False after the limit."""
        deadline = time.monotonic() + limit_s
        while not condition():
            if time.monotonic() > deadline:
                return False
            if self._superlink.stop.wait(_LOOK_S):
                raise TransportError(
                    "the server is stopping.", advice="ask again when it runs: `medfed status`."
                )
        return True

    def _end(self, status: RunStatus, state: str, headline: str, exit_code: int) -> None:
        self._journal.write(
            RunStatus(
                run=status.run,
                study=status.study,
                digest=status.digest,
                state=state,
                round=status.round,
                rounds=status.rounds,
                sites=status.sites,
                headline=headline,
                exit_code=exit_code,
                updated_at=time.time(),
                pid=status.pid,
            )
        )


def serve(
    root: DataRoot,
    *,
    host: str,
    port: int,
    control_port: int,
    names: Sequence[str],
    stop: threading.Event,
    ready: Callable[[], None],
    bundle: Path = BUNDLE,
) -> None:
    """Run a server until it is told to stop.

    Args:
        root: Its data root; made if missing.
        host: Address to listen on for the sites.
        port: Port to listen on for the sites.
        control_port: Port of the control service, on 127.0.0.1.
        names: Further names and addresses by which the sites reach it.
        stop: Ends it. Set by a signal handler.
        ready: Called once when everything answers.
        bundle: Folder of the thin Flower bundle.

    Raises:
        TransportError: a port is in use (nothing was started), or the SuperLink or the guard ended.
        ConfigError: the root cannot be used, or another server uses it.
        TrustError: the coordinator's bundle or its revocation list cannot be trusted; nothing was
            started.

    Guarantee:
        When this returns or raises, every process that it started has ended, at most 10 s
        after ``stop`` was set. A guarded root's SuperLink listens on 127.0.0.1 only, whatever
        ``host`` is, and no hospital reaches the guard before all sites are enrolled.
    """
    require_free_port(host, port, purpose="the port for the sites")
    require_free_port("127.0.0.1", control_port, purpose="the control service")
    with root.held(), Journal(root.journal) as journal:
        root.prepare([*([] if host in ("0.0.0.0", "::") else [host]), *names], control_port)
        gatehouse = Gatehouse(root, host, port) if root.guarded else None
        inner = (host, port) if gatehouse is None else (SUPERLINK_HOST, free_port())
        superlink = SuperLink(root, *inner, stop)
        logs = {superlink.start(): superlink.log}
        try:
            if not superlink.wait_healthy(_HEALTHY_LIMIT_S):
                return
            hub = Hub(root, superlink, journal, bundle)
            hub.take_up()
            if gatehouse is None:
                _answer_until(stop, ControlService(hub, root, control_port), logs, ready)
                return
            access = ByRole(root.trust, gatehouse.revoked.is_revoked)
            with _enrolled_by_bundle(root, hub, gatehouse, stop):
                logs[gatehouse.start(superlink.port)] = gatehouse.log
                if gatehouse.wait_listening(stop):
                    control = ControlService(hub, root, control_port, access)
                    _answer_until(stop, control, logs, ready)
        finally:
            end_children(list(logs), _END_LIMIT_S)


@contextlib.contextmanager
def _enrolled_by_bundle(
    root: DataRoot, hub: Hub, gatehouse: Gatehouse, stop: threading.Event
) -> Iterator[None]:
    """Enrol the sites of the coordinator's bundle, now and as it changes."""
    roll = Roll(root, hub.enrolment, gatehouse.revoked.is_revoked)
    roll.follow()
    keeper = RollKeeper(roll)
    try:
        yield
    finally:
        stop.set()  # a call of Flower that is under way ends then
        keeper.close()


def _answer_until(
    stop: threading.Event,
    control: ControlService,
    logs: Mapping[Child, Path],
    ready: Callable[[], None],
) -> None:
    """Answer coordinators until told to stop, or a child has ended."""
    try:
        ready()
        while not stop.wait(_LOOK_S):
            for child, its_log in logs.items():
                if child.exit_code() is not None:
                    raise TransportError(
                        f"{_CALLED[child.name]} ended with exit code {child.exit_code()}.",
                        advice=f"read the end of {its_log}, then start the server again; "
                        "enrolled sites and finished rounds are kept.",
                    )
    finally:
        control.close()


def _first_status(run: str, study: Study) -> RunStatus:
    return RunStatus(
        run=run,
        study=study.name,
        digest=study.digest,
        state="waiting",
        round=0,
        rounds=study.training.rounds,
        sites={site.name: "waiting" for site in study.site},
        headline="the server app is starting",
        exit_code=None,
        updated_at=time.time(),
        pid=None,
    )
