from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from medfed.client.scans.pacs.multipart import MultipartError, boundary_of, copy_single_part

HEAD = b"--b1\r\nContent-Type: application/dicom\r\n\r\n"


def copied(body: bytes, cut: int = 1 << 20) -> tuple[bytes, int]:
    """The content, and how many pieces it came in."""
    pieces: list[bytes] = []
    parts = iter([body[start : start + cut] for start in range(0, len(body), cut)])
    copy_single_part(parts, b"b1", pieces.append)
    return b"".join(pieces), len(pieces)


@given(st.binary(max_size=300), st.integers(1, 60))
@example(b"", 1)
@example(b"\r\n--b\r\n--b\r\n-", 1)  # what almost is the boundary
@example(b"\r\n\r\n", 3)
def test_the_content_is_the_same_wherever_the_body_is_cut(content: bytes, cut: int) -> None:
    if b"\r\n--b1" in content:
        return

    assert copied(HEAD + content + b"\r\n--b1--\r\n", cut)[0] == content


def test_a_large_part_is_never_held_whole() -> None:
    content = bytes(1 << 20)

    found, pieces = copied(HEAD + content + b"\r\n--b1--", 1 << 12)

    assert found == content
    assert pieces >= 256  # 1 MiB in pieces of 4 KiB


def test_what_stands_before_the_first_boundary_is_not_content() -> None:
    assert copied(b"preamble\r\n" + HEAD + b"x\r\n--b1--")[0] == b"x"


def test_a_part_without_a_header_is_content() -> None:
    assert copied(b"--b1\r\n\r\nx\r\n--b1--")[0] == b"x"


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b"", "too early"),
        (b"no boundary at all", "too early"),
        (b"x" * (128 << 10), "no part"),
        (HEAD[:-2], "too early"),
        (HEAD + b"half", "too early"),
        (HEAD + b"whole\r\n--b1", "too early"),
        (b"--b1--\r\n\r\n", "no part"),
        (HEAD + b"one\r\n--b1\r\n\r\ntwo\r\n--b1--", "more than one"),
    ],
)
def test_what_is_not_one_whole_part_is_refused(body: bytes, found: str) -> None:
    with pytest.raises(MultipartError, match=found):
        copied(body, 1000)


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ('multipart/related; type="application/dicom"; boundary=abc', b"abc"),
        ('Multipart/Related; boundary="a b;c"; type=x', b"a b;c"),
        ("application/dicom", None),
        ("", None),
    ],
)
def test_the_boundary_is_what_the_content_type_names(
    content_type: str, boundary: bytes | None
) -> None:
    assert boundary_of(content_type) == boundary


@pytest.mark.parametrize("text", ["multipart/related", f"multipart/related; boundary={'x' * 71}"])
def test_multipart_without_a_boundary_is_refused(text: str) -> None:
    with pytest.raises(MultipartError):
        boundary_of(text)
