"""How often a server that is out of reach is called, and what the admin hears."""

from __future__ import annotations

import pytest

from medfed.client.tunnel_trouble import Trouble
from medfed.common.errors import ConfigError, MedfedError, TransportError, TrustError


class Seconds:
    """A clock that tests turn."""

    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at


@pytest.mark.parametrize(
    ("kind", "first_s", "longest_s"),
    # The link mends itself; a certificate is mended by a person.
    [(TransportError, 0.5, 30.0), (TrustError, 30.0, 300.0), (ConfigError, 30.0, 300.0)],
)
def test_pauses_double_up_to_a_limit_and_are_never_less_than_half(
    kind: type[MedfedError], first_s: float, longest_s: float
) -> None:
    trouble = Trouble(lambda text: None, clock=Seconds())

    for count in range(200):
        trouble.begin(kind("away"))
        full = min(first_s * 2**count, longest_s)
        assert full / 2 <= trouble.pause_s <= full


def test_sites_do_not_all_call_at_the_same_moment() -> None:
    pauses = set()
    for _ in range(50):
        trouble = Trouble(lambda text: None, clock=Seconds())
        trouble.begin(TransportError("away"))
        pauses.add(trouble.pause_s)

    assert len(pauses) > 10  # of 1024 steps; 50 draws fall on fewer than 40 once in 1e9 times


def test_pause_goes_by_with_the_time() -> None:
    clock = Seconds()
    trouble = Trouble(lambda text: None, clock=clock)
    assert trouble.pause_s == 0.0
    trouble.begin(TrustError("wrong"))
    before = trouble.pause_s
    clock.at += 10.0
    assert trouble.pause_s == pytest.approx(before - 10.0)
    clock.at += 30.0
    assert trouble.pause_s == 0.0


def test_each_trouble_is_told_once_and_again_after_an_answer() -> None:
    told: list[str] = []
    trouble = Trouble(told.append, clock=Seconds())

    for text in ("away", "away", "refused", "away"):
        trouble.begin(TransportError(text))
    assert told == ["away", "refused"]
    assert trouble.end()
    assert not trouble.end()
    assert trouble.pause_s == 0.0
    trouble.begin(TransportError("away"))
    assert told == ["away", "refused", "away"]


def test_answer_does_not_bring_a_note_again_but_new_files_do() -> None:
    told: list[str] = []
    trouble = Trouble(told.append, clock=Seconds())

    trouble.note("expires")
    trouble.begin(TransportError("away"))
    trouble.end()
    trouble.note("expires")
    assert told == ["expires", "away"]
    trouble.begin(TrustError("wrong"))
    trouble.try_at_once()
    assert trouble.pause_s == 0.0
    trouble.note("expires")
    assert told == ["expires", "away", "wrong", "expires"]
