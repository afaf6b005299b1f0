"""Commands by which sites and people are let in and thrown out.

``request`` and ``accept`` are a site admin's, on the hospital's machine. The rest is the
coordinator's, on a machine of their own that is not the server. Files go between them by any way;
two fingerprints go by phone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medfed.deploy.cli import coordinator
from medfed.deploy.cli.output import Format, FormatOption

if TYPE_CHECKING:
    from collections.abc import Sequence

    from medfed.deploy.coordinator_issuing import Approved
    from medfed.deploy.coordinator_root import Coordinator

app = typer.Typer(help="Let sites and people in, and throw them out.", no_args_is_help=True)

_FOLDER = Path("medfed-coordinator")
_Folder = Annotated[
    Path, typer.Option("--folder", help="The coordinator's own folder, on no server.")
]


@app.command()
def init(
    server: Annotated[str, typer.Option(help="host:port by which the hospitals reach the server.")],
    name: Annotated[
        list[str] | None,
        typer.Option(help="Further host name or address of the server; repeatable."),
    ] = None,
    folder: _Folder = _FOLDER,
    format: FormatOption = Format.TEXT,
) -> None:
    """Make the coordinator's folder: the keys that say who may take part. Back it up.

    Example: medfed enrol init --server hub.example.org:8443
    """
    from medfed.deploy.coordinator_root import new_coordinator

    made = new_coordinator(folder, server, tuple(name or ()))
    _tell(
        format,
        {"folder": str(made.folder), "fingerprint": made.fingerprint},
        f"{made.folder} is made. Keep it off the server, and a backup of it in a safe.\n"
        f"Fingerprint to read out to every site by phone: {made.fingerprint}",
    )


@app.command()
def request(
    root: Annotated[Path, typer.Option(help="The site's folder.")],
    format: FormatOption = Format.TEXT,
) -> None:
    """For a site: write the request that goes to the coordinator.

    Example: medfed enrol request --root medfed-A
    """
    from medfed.client.enrolment import write_request

    file, fingerprint = write_request(root)
    _tell(
        format,
        {"file": str(file), "fingerprint": fingerprint},
        f"Send {file} to the coordinator.\n"
        f"Fingerprint of this site's key, to read out by phone: {fingerprint}",
    )


@app.command()
def approve(
    request: Annotated[
        Path, typer.Argument(help="What the site sent: its request, or its node_key.pub.")
    ],
    site: Annotated[
        str | None,
        typer.Option(help="The site. Default: the file's name, as in A.request.pem or A.pub."),
    ] = None,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace",
            help="Revoke another key of this site; for a .pub, forget its ledger's head too.",
        ),
    ] = False,
    folder: _Folder = _FOLDER,
    access: Annotated[
        Path,
        typer.Option(
            help="For a .pub: the coordinator's access, `coordinator` of the server's data root."
        ),
    ] = coordinator.ACCESS,
    format: FormatOption = Format.TEXT,
) -> None:
    """Let a site in by what it sent. Compare the fingerprint of its key by phone.

    A request gets a certificate, by which the site comes through its tunnel. A public key is
    entered at the running server, for a site that was made with the server's ca.pem.

    Example: medfed enrol approve A.request.pem
    """
    if not _is_request(request):
        coordinator.approve(request, site=site, replace=replace, access=access, format=format)
        return
    from medfed.common.trust.received_files import read_received
    from medfed.common.trust.site_requests import LARGEST_REQUEST_BYTES

    data = read_received(request, LARGEST_REQUEST_BYTES, what="a site's request")
    own = _coordinator(folder)
    done = own.approve_request(
        data,
        site or request.name.removesuffix(".request.pem"),
        replace=replace,
        source=str(request),
    )
    text = (
        f"Ask site {done.site} by phone to read out its key's fingerprint. Only if it is\n"
        f"  {done.key_fingerprint}\n"
        f"send it {done.file} and read out yours:\n"
        f"  {own.fingerprint}\n"
        f"Its certificate lasts until {done.expires:%Y-%m-%d}. If the fingerprint differs: "
        f"`medfed enrol revoke {done.site}`."
    )
    _tell(format, {**_approved(done), "fingerprint": own.fingerprint}, text)


@app.command()
def accept(
    approval: Annotated[Path, typer.Argument(help="The approval that the coordinator sent.")],
    root: Annotated[Path, typer.Option(help="The site's folder.")],
    fingerprint: Annotated[
        str | None,
        typer.Option(help="What the coordinator read out by phone. Needed the first time."),
    ] = None,
    format: FormatOption = Format.TEXT,
) -> None:
    """For a site: take up the coordinator's approval, the first or a renewed one.

    Example: medfed enrol accept A.approval.json --root medfed-A --fingerprint K7QX-2MNA-RT5P-WZ3D
    """
    from medfed.client.enrolment import take_up

    done = take_up(root, approval, fingerprint)
    _tell(
        format,
        {
            "site": done.site,
            "server": done.server,
            "fingerprint": done.fingerprint,
            "expires": done.expires.isoformat(),
        },
        f"Site {done.site} is enrolled at {done.server} until {done.expires:%Y-%m-%d}.",
    )


@app.command()
def revoke(
    who: Annotated[str, typer.Argument(help="A site, or a certificate's serial number.")],
    folder: _Folder = _FOLDER,
    format: FormatOption = Format.TEXT,
) -> None:
    """Throw a site out, or revoke one certificate. Bring the list to the server.

    Example: medfed enrol revoke A
    """
    done = _coordinator(folder).revoke(who)
    _tell(
        format,
        {"file": str(done.file), "sequence": done.sequence, "serials": done.serials},
        f"{len(done.serials)} certificate(s) revoked. Bring {done.file} to the server's trust "
        "folder; it takes effect there within a minute.",
    )


@app.command()
def rotate(
    site: Annotated[
        list[str] | None, typer.Option(help="Renew this site only; repeatable.")
    ] = None,
    root: Annotated[
        bool, typer.Option("--root", help="Make new keys for the coordinator as well.")
    ] = False,
    overlap_days: Annotated[
        int, typer.Option(help="With --root: how long the old keys are accepted too.")
    ] = 30,
    folder: _Folder = _FOLDER,
    format: FormatOption = Format.TEXT,
) -> None:
    """Renew the certificates of the sites; with --root the coordinator's keys too.

    Example: medfed enrol rotate --site A
    """
    from medfed.common.errors import ConfigError

    if root and site:
        raise ConfigError(
            "--root renews every site; --site cannot be given with it.",
            advice="leave one of the two out.",
        )
    own = _coordinator(folder)
    if root:
        done = own.rotate_root(overlap_days=overlap_days)
    else:
        done = [own.renew(name) for name in site or own.sites()]
    first = (
        "1. Make a server bundle (`medfed enrol server-bundle`) and copy it to the server.\n"
        f"2. Send each site its file below; it has {overlap_days} days, and nothing to compare.\n"
        "3. After that make another server bundle and copy it to the server.\n"
        if root
        else "Send each site its file; it takes it up with `medfed enrol accept`.\n"
    )
    lines = [f"  {one.site}: {one.file}, until {one.expires:%Y-%m-%d}" for one in done]
    facts = {"fingerprint": own.fingerprint, "sites": [_approved(one) for one in done]}
    _tell(format, facts, first + "\n".join(lines or ["  (no site has a good certificate)"]))


@app.command("list")
def list_(folder: _Folder = _FOLDER, format: FormatOption = Format.TEXT) -> None:
    """List every certificate that was issued, and where it stands.

    Example: medfed enrol list --format json
    """
    found = _coordinator(folder).list_certificates()
    facts = [
        {
            "kind": one.kind,
            "name": one.name,
            "serial": one.serial,
            "fingerprint": one.fingerprint,
            "expires": one.expires.isoformat(),
            "state": one.standing.value,
        }
        for one in found
    ]
    rows = [
        f"{one.kind:11} {one.name:20} {one.standing.value:8} until {one.expires:%Y-%m-%d}  "
        f"{one.serial}"
        for one in found
    ]
    _tell(format, facts, "\n".join(rows or ["No certificate was issued yet."]))


@app.command("server-bundle")
def server_bundle(
    to: Annotated[
        Path | None, typer.Option(help="Folder to write. Default: `server-bundle` in --folder.")
    ] = None,
    folder: _Folder = _FOLDER,
    format: FormatOption = Format.TEXT,
) -> None:
    """Write what the server needs: its certificate, whom it trusts, and who was revoked.

    Example: medfed enrol server-bundle --to bundle
    """
    from medfed.deploy.server_bundle import issue_server_bundle

    made = issue_server_bundle(_coordinator(folder), to or folder / "server-bundle")
    _tell(
        format,
        {"folder": str(made)},
        f"Copy the files of {made} into the folder `trust` of the server's data root. server.key "
        "is secret.",
    )


@app.command()
def role(
    person: Annotated[str, typer.Argument(help="The person's name, as the audit log has it.")],
    to: Annotated[Path, typer.Option(help="Folder to write their access to.")],
    role: Annotated[
        str, typer.Option(help="coordinator: may start and stop. observer: may watch.")
    ] = "observer",
    folder: _Folder = _FOLDER,
    format: FormatOption = Format.TEXT,
) -> None:
    """Give a person access to the server's control service.

    Example: medfed enrol role "Ada Byron" --role coordinator --to access-ada
    """
    from medfed.common.errors import ConfigError
    from medfed.common.trust.identities import Role
    from medfed.common.trust.received_files import shown

    if role not in list(Role):
        raise ConfigError(
            f"role {shown(role)} is unknown; allowed are {', '.join(Role)}.",
            advice="give --role one of them.",
        )
    made = _coordinator(folder).role_certificate(person, Role(role), to)
    _tell(
        format,
        {"folder": str(made), "role": role},
        f"{made} is {role}'s access for one year. client.key is secret.",
    )


def _is_request(file: Path) -> bool:
    """Whether a file is a request, and no public key; its name decides if its content does not."""
    try:
        with file.open("rb") as opened:
            begins = opened.read(64)
    except OSError:
        return file.suffix != ".pub"
    return b"CERTIFICATE REQUEST" in begins or file.name.endswith(".request.pem")


def _coordinator(folder: Path) -> Coordinator:
    from medfed.deploy.coordinator_root import Coordinator

    return Coordinator(folder)


def _approved(done: Approved) -> dict[str, Any]:
    return {
        "site": done.site,
        "file": str(done.file),
        "key_fingerprint": done.key_fingerprint,
        "expires": done.expires.isoformat(),
    }


def _tell(format: Format, facts: dict[str, Any] | Sequence[Any], text: str) -> None:
    from medfed.common.report.words import clean

    if format is Format.JSON:
        typer.echo(json.dumps(facts))
    else:
        typer.echo("\n".join(clean(line) for line in text.split("\n")))
