"""Commands of a coordinator: run the server, let sites in, start, watch and stop rounds."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medfed.deploy.cli.output import Format, FormatOption

if TYPE_CHECKING:
    from medfed.server.control_client import ControlClient
    from medfed.server.journal import RunStatus

_Access = Annotated[
    Path,
    typer.Option(
        "--access",
        help="Folder with your certificate: `coordinator` of the server's data root, or what "
        "`medfed enrol role` wrote.",
    ),
]
_Control = Annotated[
    str,
    typer.Option(
        "--control",
        help="host:port of the control service. Default: as the access folder says, else "
        "127.0.0.1:8444.",
    ),
]
_Run = Annotated[str, typer.Argument(help="Name of a run. Default: the newest.")]
ACCESS = Path("medfed-server/coordinator")


def register(app: typer.Typer) -> None:
    """Add the commands of a coordinator to the program."""
    from medfed.deploy.cli import enrol  # which uses ``approve``

    for command in (server, launch, status, watch, stop):
        app.command()(command)
    app.add_typer(enrol.app, name="enrol")


def server(
    root: Annotated[Path, typer.Option(help="The server's data root.")] = Path("medfed-server"),
    host: Annotated[str, typer.Option(help="Address to listen on for the sites.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port to listen on for the sites.")
    ] = 8443,
    control_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port of the control service, on 127.0.0.1.")
    ] = 8444,
    name: Annotated[
        list[str] | None,
        typer.Option(help="Further host name or address by which sites reach it; repeatable."),
    ] = None,
    format: FormatOption = Format.TEXT,
) -> None:
    """Run the server until Ctrl-C. Its data root is made at the first start.

    With a coordinator's bundle in its folder `trust` (`medfed enrol server-bundle`), hospitals
    reach the guard only. Without one keep --host on loopback: Flower's control interface answers
    on the same port, without login.

    Example: medfed server --root /srv/medfed
    """
    end, received = threading.Event(), list[int]()

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        end.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    from medfed.server.data_root import DataRoot
    from medfed.server.hub import serve

    where = DataRoot(root.absolute())

    def ready() -> None:
        facts = {
            "address": f"{host}:{port}",
            "control": f"127.0.0.1:{control_port}",
            "root": str(where.path),
            "ca": str(where.trust / "ca.pem"),
            "guarded": where.guarded,
        }
        sites, people = f"need {facts['ca']}", f"need {where.coordinator}"
        if where.guarded:
            sites = "join through the guard, with the certificate in their approval"
            people = "use the folder that `medfed enrol role` wrote"
        text = (
            f"The server answers on {host}:{port}. Data root: {where.path}\n"
            f"  sites {sites}\n"
            f"  coordinators {people} (control service on {facts['control']})\n"
            "Ctrl-C stops it."
        )
        typer.echo(json.dumps(facts) if format is Format.JSON else text)

    try:
        serve(
            where,
            host=host,
            port=port,
            control_port=control_port,
            names=name or [],
            stop=end,
            ready=ready,
        )
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if signal.SIGINT in received:
        raise typer.Exit(130)


def approve(
    public_key: Annotated[Path, typer.Argument(help="The node_key.pub that the site sent.")],
    site: Annotated[
        str | None, typer.Option(help="The site's name. Default: the file's name, as in A.pub.")
    ] = None,
    replace: Annotated[
        bool,
        typer.Option(
            help="Throw out another key of this site, and forget what is known of its ledger."
        ),
    ] = False,
    access: _Access = ACCESS,
    format: FormatOption = Format.TEXT,
) -> None:
    """Let a site in by its public key. Compare the fingerprint with the site by phone.

    Example: medfed enrol approve A.pub --access /srv/medfed/coordinator
    """
    from medfed.common.errors import ConfigError
    from medfed.common.trust.keys import read_public_key

    name = site or public_key.stem
    if site is None and name == "node_key":
        raise ConfigError(
            f"{public_key}: the file's name does not say which site it is of.",
            advice="give --site NAME, as the studies list it, or rename the file to NAME.pub.",
        )
    key = read_public_key(public_key)
    with _server(access) as client:
        mark, was_enrolled = client.enrol(name, key, replace=replace)
    if format is Format.JSON:
        typer.echo(json.dumps({"site": name, "fingerprint": mark, "was_enrolled": was_enrolled}))
        return
    typer.echo(f"Site {name} is {'already ' if was_enrolled else ''}enrolled with the key {mark}.")


def launch(
    study: Annotated[Path, typer.Argument(help="The study file.")],
    access: _Access = ACCESS,
    control: _Control = "",
    detach: Annotated[bool, typer.Option("--detach", help="Do not follow the rounds.")] = False,
    format: FormatOption = Format.TEXT,
) -> None:
    """Start a study's rounds on the server and follow them. Ending this does not end them.

    Ends with 0 when the run finished as planned, 18 when it finished otherwise.

    Example: medfed launch study.toml --access /srv/medfed/coordinator
    """
    from medfed.common.study import load_study

    checked = load_study(study)
    with _server(access, control) as client:
        run, was_running = client.launch(checked.canonical())
        if detach:
            facts = {"run": run, "was_running": was_running, "digest": checked.digest}
            text = f"Run {run} is {'already running' if was_running else 'started'}."
            typer.echo(json.dumps(facts) if format is Format.JSON else text)
            return
        if format is Format.TEXT:
            typer.echo(
                f"Run {run} {'is already running; following it' if was_running else 'started'}. "
                f"It goes on if you end this; `medfed watch {run}` follows it again."
            )
        _follow(client, run, format)


def status(
    run: _Run = "",
    access: _Access = ACCESS,
    control: _Control = "",
    format: FormatOption = Format.TEXT,
) -> None:
    """Say where a run stands and what each site is doing.

    Example: medfed status --access /srv/medfed/coordinator --format json
    """
    with _server(access, control) as client:
        _show(client.status(run), format)


def watch(
    run: _Run = "",
    access: _Access = ACCESS,
    control: _Control = "",
    format: FormatOption = Format.TEXT,
) -> None:
    """Follow a run until it ends. The exit code is the run's.

    Example: medfed watch --access /srv/medfed/coordinator
    """
    with _server(access, control) as client:
        _follow(client, run, format)


def stop(
    run: _Run = "",
    access: _Access = ACCESS,
    control: _Control = "",
    format: FormatOption = Format.TEXT,
) -> None:
    """Stop a run after what it is doing; the last good model is kept.

    Example: medfed stop pneumonia-1a2b3c4d-1 --access /srv/medfed/coordinator
    """
    with _server(access, control) as client:
        _show(client.stop(run), format)


def _server(access: Path, control: str = "") -> ControlClient:
    from medfed.server.control_client import ControlClient

    return ControlClient(access, control)


def _follow(client: ControlClient, run: str, format: Format) -> None:
    last: RunStatus | None = None
    try:
        for last in client.watch(run):
            if format is Format.JSON:
                typer.echo(json.dumps(_facts(last)))
            else:
                typer.echo(f"{last.state:10} round {last.round}/{last.rounds}  {last.headline}")
    except KeyboardInterrupt:
        typer.echo("The rounds go on without you; `medfed status` says where they stand.", err=True)
        raise typer.Exit(130) from None
    if last is None or not last.ended:
        from medfed.common.errors import TransportError

        raise TransportError(
            "the server stopped answering before the run ended.",
            advice="start `medfed server` again, then `medfed status`.",
        )
    if last.exit_code:
        raise typer.Exit(last.exit_code)


def _show(status: RunStatus, format: Format) -> None:
    if format is Format.JSON:
        typer.echo(json.dumps(_facts(status)))
        return
    typer.echo(f"Run {status.run}: {status.state}, round {status.round} of {status.rounds}")
    typer.echo(f"  {status.headline}")
    for site, word in status.sites.items():
        typer.echo(f"  site {site}: {word}")


def _facts(status: RunStatus) -> dict[str, Any]:
    return {
        "run": status.run,
        "study": status.study,
        "digest": status.digest,
        "state": status.state,
        "round": status.round,
        "rounds": status.rounds,
        "sites": dict(status.sites),
        "headline": status.headline,
        "exit_code": status.exit_code,
        "updated_at": status.updated_at,
    }
