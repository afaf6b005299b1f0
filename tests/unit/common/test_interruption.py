from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from medfed.common.interruption import interrupt_once, interrupts_held


def press() -> None:
    """What Ctrl-C does to a process."""
    signal.raise_signal(signal.SIGINT)


@pytest.fixture(autouse=True)
def usual_handler() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_is_heard_where_the_work_may_end_however_often_it_was_pressed() -> None:
    done = []

    with pytest.raises(KeyboardInterrupt), interrupts_held() as check:
        check()
        press()
        done.append("half")
        press()
        done.append("whole")
        check()
        done.append("more")

    assert done == ["half", "whole"]


def test_what_is_pressed_while_the_work_is_cleared_up_does_not_disturb_it() -> None:
    cleared = []

    with pytest.raises(KeyboardInterrupt), interrupts_held() as check:
        try:
            press()
            check()
        finally:
            press()
            cleared.append("all")

    assert cleared == ["all"]


def test_ctrl_c_that_came_after_the_last_check_is_heard_at_the_end() -> None:
    with pytest.raises(KeyboardInterrupt), interrupts_held():
        press()


def test_another_error_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError), interrupts_held():
        press()
        raise ZeroDivisionError


def test_afterwards_ctrl_c_works_as_before() -> None:
    with interrupts_held() as check:
        check()

    with pytest.raises(KeyboardInterrupt):
        press()


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda _number, _frame: None])
def test_a_program_with_its_own_way_keeps_it(handler: signal.Handlers) -> None:
    signal.signal(signal.SIGINT, handler)

    with interrupts_held() as check:
        assert signal.getsignal(signal.SIGINT) is handler
        press()
        check()
    assert signal.getsignal(signal.SIGINT) is handler


def test_in_another_thread_nothing_is_held_back() -> None:
    seen = []

    def work() -> None:
        with interrupts_held() as check:
            check()
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    assert seen == [signal.default_int_handler]


# ---- once ----------------------------------------------------------------------------------------
def test_the_first_ctrl_c_ends_a_command_and_the_next_ones_do_not_disturb_its_end() -> None:
    interrupt_once()

    with pytest.raises(KeyboardInterrupt):
        press()
    press()


def test_a_ctrl_c_that_was_held_back_is_the_first() -> None:
    interrupt_once()

    with pytest.raises(KeyboardInterrupt), interrupts_held() as check:
        press()
        check()
    press()


def test_a_command_in_the_background_goes_on_not_hearing_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    interrupt_once()

    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
