from __future__ import annotations

import re
from datetime import time
from pathlib import Path

import pytest

from medfed.client.scans.pacs.pace import Rates, Window
from medfed.client.scans.pacs.settings import (
    EXAMPLE,
    Credentials,
    PacsSettings,
    read_credentials,
    read_settings,
    tls_context,
)
from medfed.common.errors import ConfigError

LIMITS = "[limits]\nmax_total_gib = 1\n"
WEB = '[dicomweb]\nurl = "https://pacs.example/dicom-web"\n'
DIMSE = '[dimse]\naddress = "pacs.example:2762"\ncalled_ae = "PACS"\ncalling_ae = "MEDFED"\n'


def settings(tmp_path: Path, text: str) -> PacsSettings:
    file = tmp_path / "pacs.toml"
    file.write_text(text)
    return read_settings(file)


def secret(tmp_path: Path, content: bytes, mode: int = 0o600) -> Path:
    file = tmp_path / "pacs.secret"
    file.write_bytes(content)
    file.chmod(mode)
    return file


def test_the_example_is_valid_and_so_is_its_other_half(tmp_path: Path) -> None:
    web = settings(tmp_path, EXAMPLE)
    limits = EXAMPLE[EXAMPLE.index("[limits]") :]
    second = EXAMPLE[EXAMPLE.index("# [dimse]") : EXAMPLE.index("# ca, certificate, key or plain")]
    dimse = settings(tmp_path, re.sub("(?m)^# ", "", second) + limits)

    assert web.dicomweb is not None and web.dimse is None
    assert dimse.dimse is not None and dimse.dimse.called_ae == "PACS"
    assert web.limits == dimse.limits
    assert web.limits.rates() == Rates(120, 200, 5_000_000)
    assert web.limits.time_window() == Window(time(22), time(6))


@pytest.mark.parametrize("archive", [WEB, DIMSE])
def test_only_the_folders_size_has_no_default(tmp_path: Path, archive: str) -> None:
    limits = settings(tmp_path, archive + LIMITS).limits

    assert (limits.rates(), limits.time_window()) == (Rates(), None)
    with pytest.raises(ConfigError, match="limits.max_total_gib: missing"):
        settings(tmp_path, archive + "[limits]\n")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (LIMITS, "both or none"),
        (WEB + DIMSE + LIMITS, "both or none"),
        (WEB + 'password = "SECRET"\n' + LIMITS, "unknown key"),
        (WEB.replace("https", "http") + LIMITS, "http:// goes with plain"),
        (WEB + "plain = true\n" + LIMITS, "http:// goes with plain"),
        (WEB.replace("https", "http") + 'plain = true\ncredentials = "/x"\n' + LIMITS, "not sent"),
        (WEB.replace("pacs.ex", "me:SECRET@pacs.ex") + LIMITS, "must hold no user"),
        (WEB.replace("https", "ftp") + LIMITS, "must be the http"),
        (WEB + 'certificate = "/x"\n' + LIMITS, "go together"),
        (WEB + 'ca = "ca.pem"\n' + LIMITS, "absolute path"),
        (DIMSE + 'plain = true\nca = "/x"\n' + LIMITS, "without effect"),
        (DIMSE.replace(":2762", "") + LIMITS, "host:port"),
        (DIMSE.replace('"PACS"', '"A TITLE THAT IS TOO LONG"') + LIMITS, "called_ae"),
        (DIMSE.replace('"PACS"', "'A\\B'") + LIMITS, "called_ae"),
        (WEB + LIMITS + 'window = "always"\n', '"22:00-06:00"'),
        (WEB + LIMITS + "max_object_mib = 600\n", "max_object_mib"),
        (WEB + LIMITS + "requests_per_minute = 0\n", "requests_per_minute"),
    ],
)
def test_a_file_that_breaks_a_rule_is_refused_with_it(
    tmp_path: Path, text: str, found: str
) -> None:
    with pytest.raises(ConfigError, match=found):
        settings(tmp_path, text)


def test_a_password_may_go_to_this_machine_without_tls(tmp_path: Path) -> None:
    text = '[dicomweb]\nurl = "http://localhost:8042/d/"\nplain = true\ncredentials = "/x"\n'

    web = settings(tmp_path, text + LIMITS).dicomweb

    assert web is not None and web.url == "http://localhost:8042/d"


def test_a_file_that_is_missing_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read") as refusal:
        read_settings(tmp_path / "pacs.toml")
    assert "--example" in refusal.value.advice


def test_credentials_are_two_lines_or_a_token(tmp_path: Path) -> None:
    assert read_credentials(secret(tmp_path, "me\nü p\n".encode())) == Credentials("me", "ü p")
    assert read_credentials(secret(tmp_path, b"token")) == Credentials(None, "token")


def test_credentials_do_not_show() -> None:
    assert "SECRET" not in repr(Credentials("SECRET", "SECRET"))


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"SECRET\n\n", b"SECRET\nb\nc", b"SECRET\xff", b"SEC\x1bRET"]
)
def test_a_file_that_holds_no_credentials_is_refused_and_not_quoted(
    tmp_path: Path, content: bytes
) -> None:
    with pytest.raises(ConfigError) as refusal:
        read_credentials(secret(tmp_path, content))
    assert "SEC" not in str(refusal.value)
    assert refusal.value.__cause__ is None


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_credentials_that_others_may_read_are_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ConfigError, match=f"mode 0{mode:o}, allowed: 0600"):
        read_credentials(secret(tmp_path, b"me\nSECRET", mode))


def test_credentials_that_are_no_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no regular file"):
        read_credentials(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_credentials(tmp_path / "none")


def test_a_certificate_that_is_none_is_refused(tmp_path: Path) -> None:
    bad = secret(tmp_path, b"no certificate")
    first = settings(tmp_path, f'{DIMSE}ca = "{bad}"\n{LIMITS}').dimse
    second = settings(tmp_path, f'{DIMSE}ca = "{tmp_path}/none"\n{LIMITS}').dimse
    assert first and second

    with pytest.raises(ConfigError, match="not PEM"):
        tls_context(first)
    with pytest.raises(ConfigError, match="cannot be read"):
        tls_context(second)
