"""Pulls from a real Orthanc, over DICOMweb and over DIMSE, plain and with TLS.

Where no Orthanc is installed and none can be fetched these tests are skipped (under CI they
fail). What they pull is made here: nobody was ever scanned for it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
import pytest
import requests
import typer
from pydicom.dataset import Dataset
from pydicom.uid import (
    BasicTextSRStorage,
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    RLELossless,
)
from typer.testing import CliRunner

from medfed.client.scans.pacs import dimse as dimse_module
from medfed.client.scans.pacs import pull as pull_module
from medfed.client.scans.pacs.archive import Archive, NotPulledError, Reason
from medfed.client.scans.pacs.dicomweb import DicomWebArchive
from medfed.client.scans.pacs.dimse import DimseArchive
from medfed.client.scans.pacs.pace import Pace, Rates
from medfed.client.scans.pacs.plan import Query
from medfed.client.scans.pacs.pull import Pull, Tally
from medfed.client.scans.pacs.settings import Credentials, DicomWebSettings, DimseSettings, Limits
from medfed.client.scans.pacs.store import PullStore
from medfed.common.errors import MedfedError, TransportError, TrustError
from medfed.common.trust.certificates import (
    issue_client_certificate,
    issue_server_certificate,
    new_authority,
)
from medfed.deploy.cli import scans_pull
from medfed.simulations.dicom_objects import derived_uid, image_object
from tests.support.orthanc import (
    CALLED_AE,
    CALLING_AE,
    PASSWORD,
    USER,
    NoOrthancError,
    Sockets,
    running_orthanc,
)
from tests.support.relay_server import Relay, relay

pytestmark = [pytest.mark.slow, pytest.mark.network]
LIMITS = Limits(max_total_gib=1.0, keep_free_gib=0.0)
# Asked together with a modality, Orthanc tells "Chest" from "chest".
CHESTS_2025 = Query(("CR", "DX"), date(2025, 1, 1), date(2025, 12, 31), "*Chest*")
PROTOCOLS = ("dicomweb", "dimse")


class Ward(NamedTuple):
    """A running Orthanc with our studies in it, and its two ports."""

    sockets: Sockets
    http: Relay
    dicom: Relay
    stored: dict[str, Dataset]

    def archive(
        self,
        protocol: str,
        *,
        pace: Pace | None = None,
        user: str = USER,
        called: str = CALLED_AE,
        calling: str = CALLING_AE,
    ) -> Archive:
        ask = (pace or Pace(Rates())).before_request
        if protocol == "dicomweb":
            url = f"http://127.0.0.1:{self.http.port}/dicom-web"
            web = DicomWebSettings(url=url, plain=True)
            return DicomWebArchive(web, Credentials(user, PASSWORD), ask)
        address = f"127.0.0.1:{self.dicom.port}"
        dimse = DimseSettings(address=address, called_ae=called, calling_ae=calling, plain=True)
        return DimseArchive(dimse, ask)

    def wanted(self) -> list[str]:
        """The instances that ``CHESTS_2025`` means."""
        return sorted(uid for uid, d in self.stored.items() if d.get("StudyID") == "wanted")


def one_object(
    name: str,
    number: int,
    *,
    day: str = "20250601",
    description: str = "XR Chest PA",
    modality: str = "CR",
    sop_class: str = ComputedRadiographyImageStorage,
    wanted: bool = False,
) -> Dataset:
    pixels = np.random.default_rng(number).integers(0, 4096, (60, 70), dtype=np.uint16)
    dataset = image_object(
        pixels,
        sop_class=pydicom.uid.UID(sop_class),
        instance=derived_uid("pacs", name, number),
        study=derived_uid("pacs", name),
        series=derived_uid("pacs", name, modality),
        patient_id=f"MRN-{name}",
        bits_stored=12,
        colour_model="MONOCHROME2",
    )
    dataset.StudyDate, dataset.StudyDescription, dataset.Modality = day, description, modality
    dataset.AccessionNumber, dataset.PatientName = f"ACC-{name}", "Doe^Jane"
    dataset.StudyID = "wanted" if wanted else ""
    return dataset


def hospital() -> list[Dataset]:
    compressed = one_object("a", 2, wanted=True)
    compressed.compress(RLELossless)
    report = one_object("a", 3, modality="SR", sop_class=BasicTextSRStorage)
    for keyword in ("PixelData", "Rows", "Columns"):
        delattr(report, keyword)
    digital = DigitalXRayImageStorageForPresentation
    return [
        one_object("a", 0, wanted=True),
        one_object("a", 1, wanted=True),
        compressed,
        report,
        one_object("b", 0, modality="DX", sop_class=digital, day="20250102", wanted=True),
        one_object("old", 0, day="20241231"),
        one_object("hand", 0, description="XR Hand"),
        one_object("ct", 0, modality="CT", sop_class=CTImageStorage, description="CT Chest"),
    ]


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ward]:
    try:
        with (
            running_orthanc(tmp_path_factory.mktemp("orthanc")) as sockets,
            relay(sockets.http) as http,
            relay(sockets.dicom) as dicom,
        ):
            stored = {}
            for dataset in hospital():
                file = io.BytesIO()
                dataset.save_as(file, enforce_file_format=True)
                answer = requests.post(
                    f"http://127.0.0.1:{http.port}/instances",
                    data=file.getvalue(),
                    auth=(USER, PASSWORD),
                    timeout=20,
                )
                answer.raise_for_status()
                stored[str(dataset.SOPInstanceUID)] = dataset
            yield Ward(sockets, http, dicom, stored)
    except NoOrthancError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


def run(
    archive: Archive,
    folder: Path,
    *,
    query: Query = CHESTS_2025,
    limits: Limits = LIMITS,
    pace: Pace | None = None,
    dry: bool = False,
) -> Tally:
    with PullStore.open(folder) as store:
        job = Pull(archive, query, store, limits, pace or Pace(Rates()))
        return job.plan() if dry else job.run()


def pulled(folder: Path) -> dict[str, Dataset]:
    """What lies in the folder, by SOP Instance UID; every name is checked on the way."""
    found = {}
    for path in folder.glob("*/*.dcm"):
        dataset = pydicom.dcmread(path)
        assert path.stem == hashlib.sha256(dataset.SOPInstanceUID.encode()).hexdigest()
        found[str(dataset.SOPInstanceUID)] = dataset
    return found


# ---- what comes ----------------------------------------------------------------------------------
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_fits_the_query_comes_as_it_is_stored(
    ward: Ward, tmp_path: Path, protocol: str
) -> None:
    tally = run(ward.archive(protocol), tmp_path)

    found = pulled(tmp_path)
    assert sorted(found) == ward.wanted()
    assert (tally.studies, tally.files, tally.pulled) == (2, 4, 4)
    assert tally.modalities == {"CR": 3, "DX": 1}
    for uid, dataset in found.items():
        original = ward.stored[uid]
        # The RLE one too: the archive is not asked to decompress, and not allowed to compress.
        syntax = original.file_meta.TransferSyntaxUID
        assert dataset.file_meta.TransferSyntaxUID == syntax
        assert dataset.PixelData == original.PixelData
        assert dataset.PatientID == original.PatientID  # the site's own reader needs it
    syntaxes = {d.file_meta.TransferSyntaxUID for d in found.values()}
    assert RLELossless in syntaxes and len(syntaxes) == 2


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_dry_run_counts_and_brings_nothing(ward: Ward, tmp_path: Path, protocol: str) -> None:
    tally = run(ward.archive(protocol), tmp_path, dry=True)

    assert (tally.studies, tally.files, tally.missing) == (2, 4, 4)
    assert tally.estimated_bytes == 4 * 60 * 70 * 2  # four images of 60 x 70, 16 bits
    assert pulled(tmp_path) == {}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_accession_numbers_bring_their_images_and_no_report(
    ward: Ward, tmp_path: Path, protocol: str
) -> None:
    tally = run(ward.archive(protocol), tmp_path, query=Query(accessions=("ACC-a", "ACC-none")))

    assert (tally.studies, tally.pulled) == (1, 3)
    assert tally.left_out == {"not an image": 1}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_description_with_blanks_is_found(ward: Ward, tmp_path: Path, protocol: str) -> None:
    query = Query(description="XR Chest PA", until=date(2024, 12, 31))

    # Orthanc 1.10 does not decode %20 in an address, so the blanks are asked for as any text.
    assert run(ward.archive(protocol), tmp_path, query=query).pulled == 1


def test_both_protocols_find_the_same(ward: Ward, tmp_path: Path) -> None:
    anything = Query(since=date(1990, 1, 1))

    tallies = [
        run(ward.archive(protocol), tmp_path / protocol, query=anything) for protocol in PROTOCOLS
    ]

    assert tallies[0].pulled == tallies[1].pulled == len(ward.stored) - 1  # but the report
    assert sorted(pulled(tmp_path / "dicomweb")) == sorted(pulled(tmp_path / "dimse"))


# ---- resume --------------------------------------------------------------------------------------
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_second_run_brings_only_what_is_missing(
    ward: Ward, tmp_path: Path, protocol: str
) -> None:
    run(ward.archive(protocol), tmp_path)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.dcm")}
    gone = kept.popitem()[0]
    gone.unlink()

    tally = run(ward.archive(protocol), tmp_path)

    assert (tally.there, tally.pulled) == (3, 1)
    assert gone.exists()
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("after_bytes", [1, 4_000, 12_000, 20_000])
def test_a_link_that_breaks_at_any_moment_costs_nothing(
    ward: Ward,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    protocol: str,
    after_bytes: int,
) -> None:
    monkeypatch.setattr(pull_module, "RETRY_AFTER_S", ())
    line = ward.http if protocol == "dicomweb" else ward.dicom
    line.cut_after_bytes = after_bytes

    with pytest.raises(TransportError):
        run(ward.archive(protocol), tmp_path)
    assert line.cut_after_bytes is None  # it was this that ended the run
    before = pulled(tmp_path)  # all of them whole, or this would raise
    run(ward.archive(protocol), tmp_path)

    assert len(before) < 4
    assert sorted(pulled(tmp_path)) == ward.wanted()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_interruption_amid_a_file_ends_at_once_and_leaves_no_thread(
    ward: Ward, tmp_path: Path, protocol: str
) -> None:
    class Interrupting(Pace):
        def after_bytes(self, count: int) -> None:
            raise KeyboardInterrupt

    before = threading.active_count()
    archive = ward.archive(protocol)
    with pytest.raises(KeyboardInterrupt):
        run(archive, tmp_path, pace=Interrupting(Rates()))

    assert pulled(tmp_path) == {}
    assert [t.name for t in threading.enumerate() if "Requestor" in t.name] == []
    assert threading.active_count() <= before + 2  # the relay's own
    assert run(archive, tmp_path).pulled == 4


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_link_that_breaks_once_is_made_again_by_the_same_run(
    ward: Ward, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    monkeypatch.setattr(pull_module, "RETRY_AFTER_S", (0.0,))
    (ward.http if protocol == "dicomweb" else ward.dicom).cut_after_bytes = 12_000

    assert run(ward.archive(protocol), tmp_path).pulled == 4


# ---- limits --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("protocol", "overhead_bytes"),
    [("dicomweb", 0), ("dimse", 1 << 20), ("dimse", 1000)],  # 1000: cut off while it comes
)
def test_an_object_over_the_limit_is_refused_before_it_is_kept(
    ward: Ward, monkeypatch: pytest.MonkeyPatch, protocol: str, overhead_bytes: int
) -> None:
    monkeypatch.setattr(dimse_module, "_OVERHEAD_BYTES", overhead_bytes)

    class Small:
        limit_bytes = 2_000

        def write(self, piece: bytes) -> None:
            self.limit_bytes -= len(piece)
            if self.limit_bytes < 0:
                raise NotPulledError(Reason.TOO_LARGE)

    archive = ward.archive(protocol)
    study = next(archive.studies({"AccessionNumber": "ACC-b"}))
    instance = next(iter(archive.instances(study, lambda _modality: True)))

    with pytest.raises(NotPulledError) as refusal:
        archive.fetch(instance, Small())
    assert refusal.value.reason is Reason.TOO_LARGE
    archive.hang_up()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_the_archive_no_longer_has_is_counted(ward: Ward, protocol: str) -> None:
    class Sink:
        limit_bytes = 1 << 20

        def write(self, piece: bytes) -> None:
            raise AssertionError("nothing should come")

    archive = ward.archive(protocol)
    study = next(archive.studies({"AccessionNumber": "ACC-b"}))
    instance = next(iter(archive.instances(study, lambda _modality: True)))

    with pytest.raises(NotPulledError) as refusal:
        archive.fetch(instance._replace(uid="1.2.3"), Sink())
    assert refusal.value.reason in (Reason.GONE, Reason.NOT_SENT)
    archive.hang_up()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_port_is_ever_opened(ward: Ward, tmp_path: Path, protocol: str) -> None:
    seen: set[int] = set()

    class Watching(Pace):
        def before_request(self) -> None:
            seen.add(len(listening()))

        def after_bytes(self, count: int) -> None:
            seen.add(len(listening()))

    before = len(listening())
    pace = Watching(Rates())
    tally = run(ward.archive(protocol, pace=pace), tmp_path, pace=pace)

    assert tally.pulled == 4
    assert seen == {before}
    with socket.create_server(("127.0.0.1", 0)):  # the measure has teeth
        assert len(listening()) == before + 1


def listening() -> set[str]:
    """Inodes of this process's listening TCP sockets."""
    own = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            own.add(os.readlink(link))
        except OSError:  # closed meanwhile
            continue
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]
    ]
    return {row[9] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in own}


# ---- who is who ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("protocol", "changes"),
    [
        ("dicomweb", {"user": "somebody"}),
        ("dimse", {"calling": "NOBODY"}),
        ("dimse", {"called": "ELSEWHERE"}),
    ],
)
def test_an_archive_that_does_not_know_us_is_told_as_such(
    ward: Ward, tmp_path: Path, protocol: str, changes: dict[str, str]
) -> None:
    with pytest.raises(TrustError) as refusal:
        run(ward.archive(protocol, **changes), tmp_path)  # type: ignore[arg-type]  # names above
    assert PASSWORD not in str(refusal.value)


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trust")
    for name in ("right", "wrong"):
        new_authority(folder / name)
        issue_server_certificate(folder / name, ["localhost"])
        issue_client_certificate(folder / name, folder / name / "client", "site A")
    return folder


def over_tls(protocol: str, port: int, ca: Path, client: Path | None) -> Archive:
    files = {"ca": str(ca / "ca.pem")}
    if client is not None:
        files |= {"certificate": str(client / "client.pem"), "key": str(client / "client.key")}
    ask = Pace(Rates()).before_request
    if protocol == "dicomweb":
        web = DicomWebSettings(url=f"https://localhost:{port}/dicom-web", **files)
        return DicomWebArchive(web, Credentials(USER, PASSWORD), ask)
    dimse = DimseSettings(
        address=f"localhost:{port}", called_ae=CALLED_AE, calling_ae=CALLING_AE, **files
    )
    return DimseArchive(dimse, ask)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("ask_client", [False, True])
def test_it_works_over_tls(
    ward: Ward, tmp_path: Path, trust: Path, protocol: str, ask_client: bool
) -> None:
    target = ward.sockets.http if protocol == "dicomweb" else ward.sockets.dicom
    right = trust / "right"
    with relay(target, trust=right, ask_client=ask_client) as line:
        client = right / "client" if ask_client else None

        assert run(over_tls(protocol, line.port, right, client), tmp_path).pulled == 4


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_archive_of_another_authority_is_not_trusted(
    ward: Ward, tmp_path: Path, trust: Path, protocol: str
) -> None:
    target = ward.sockets.http if protocol == "dicomweb" else ward.sockets.dicom
    with (
        relay(target, trust=trust / "wrong") as line,
        pytest.raises(TrustError, match="certificates"),
    ):
        run(over_tls(protocol, line.port, trust / "right", None), tmp_path)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("client", [None, "wrong"])
def test_an_archive_that_asks_for_our_certificate_gets_the_right_one_or_none(
    ward: Ward,
    tmp_path: Path,
    trust: Path,
    monkeypatch: pytest.MonkeyPatch,
    protocol: str,
    client: str | None,
) -> None:
    monkeypatch.setattr(pull_module, "RETRY_AFTER_S", ())
    target = ward.sockets.http if protocol == "dicomweb" else ward.sockets.dicom
    ours = trust / client / "client" if client else None
    with (
        relay(target, trust=trust / "right", ask_client=True) as line,
        pytest.raises(MedfedError) as refusal,
    ):
        run(over_tls(protocol, line.port, trust / "right", ours), tmp_path)
    # TLS 1.3 tells the client only after the handshake: it may look like a broken link.
    assert isinstance(refusal.value, TrustError | TransportError)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_nobody_there_is_a_matter_of_the_link(
    tmp_path: Path, trust: Path, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    monkeypatch.setattr(pull_module, "RETRY_AFTER_S", ())
    with socket.socket() as taken:  # bound and not listening
        taken.bind(("127.0.0.1", 0))
        archive = over_tls(protocol, taken.getsockname()[1], trust / "right", None)

        with pytest.raises(TransportError, match="cannot be reached"):
            run(archive, tmp_path)


# ---- the command ---------------------------------------------------------------------------------
def command(ward: Ward, tmp_path: Path, protocol: str, extra: Sequence[str]) -> tuple[int, str]:
    secret = tmp_path / "pacs.secret"
    secret.write_text(f"{USER}\n{PASSWORD}\n")
    secret.chmod(0o600)
    address = {
        "dicomweb": f'url = "http://127.0.0.1:{ward.http.port}/dicom-web"\n'
        f'credentials = "{secret}"',
        "dimse": f'address = "127.0.0.1:{ward.dicom.port}"\ncalled_ae = "{CALLED_AE}"\n'
        f'calling_ae = "{CALLING_AE}"',
    }[protocol]
    (tmp_path / "pacs.toml").write_text(
        f"[{protocol}]\n{address}\nplain = true\n[limits]\nmax_total_gib = 1\nkeep_free_gib = 0\n"
    )
    (tmp_path / "list.txt").write_text("ACC-a\nACC-b\n")
    app = typer.Typer()
    scans_pull.register(app)
    app.callback()(lambda: None)  # so that the one command keeps its name
    base = ["pull", "--pacs", str(tmp_path / "pacs.toml"), "--into", str(tmp_path / "scans")]
    result = CliRunner().invoke(app, [*base, *extra], catch_exceptions=False)
    return result.exit_code, result.output


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_command_plans_then_pulls(ward: Ward, tmp_path: Path, protocol: str) -> None:
    asked = ["--modality", "cr", "--modality", "DX", "--since", "2025-01-01"]
    asked += ["--until", "2025-12-31", "--description", "*Chest*"]

    code, text = command(ward, tmp_path, protocol, [*asked, "--dry-run"])
    assert code == 0
    assert "StudyDate=20250101-20251231, StudyDescription=*Chest*, ModalitiesInStudy=CR" in text
    assert "to be pulled            4" in text
    assert pulled(tmp_path / "scans") == {}

    code, text = command(ward, tmp_path, protocol, [*asked, "--format", "json"])
    report = json.loads(text)
    assert (code, report["pulled"], report["missing"]) == (0, 4, 0)
    assert sorted(pulled(tmp_path / "scans")) == ward.wanted()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_command_shows_nothing_of_a_patient_or_a_secret(
    ward: Ward, tmp_path: Path, caplog: pytest.LogCaptureFixture, protocol: str
) -> None:
    with caplog.at_level("DEBUG"):
        code, text = command(ward, tmp_path, protocol, ["--accessions", str(tmp_path / "list.txt")])

    assert code == 0 and "pulled                  4" in text
    private = [PASSWORD, "Doe", "MRN", "ACC-", *ward.stored]
    private += [str(d.StudyInstanceUID) for d in ward.stored.values()]
    assert [word for word in private if word in text + caplog.text] == []
