"""Ctrl-C is heard where nothing is half done, and nowhere else.

Python raises KeyboardInterrupt wherever the program happens to be: between a record and the line
that names it, or in the middle of starting or ending a process, whose other end then waits for
ever. Somebody who presses the keys twice interrupts the clearing up too.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_pressed = False


def interrupt_once() -> None:
    """Let the first Ctrl-C raise KeyboardInterrupt, and the next ones do nothing.

    A second KeyboardInterrupt could be raised while the first is being handled, where nothing
    catches it. A program that does not hear Ctrl-C is left so.
    """
    main = threading.current_thread() is threading.main_thread()
    if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _raise_once)


def was_interrupted() -> bool:
    """Whether Ctrl-C was pressed since ``interrupt_once``.

    What it raises can come out as something else: a library may catch it, and raise its own.
    """
    return _pressed


def _raise_once(_number: int, _frame: FrameType | None) -> None:
    global _pressed
    _pressed = True
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


@contextmanager
def interrupts_held() -> Iterator[Callable[[], None]]:
    """Hold Ctrl-C back, however often it is pressed.

    Returns:
        To be called, about once a second or oftener, where the work may end.

    Raises:
        KeyboardInterrupt: there, or at the end of the block, if Ctrl-C was pressed in it.

    Guarantee:
        Where Ctrl-C does not raise KeyboardInterrupt (another thread than the main one, a program
        with a handler of its own, one in the background), nothing is changed.
    """
    pressed = False

    def note(_number: int, _frame: object) -> None:
        nonlocal pressed
        pressed = True

    def check() -> None:
        if pressed:
            raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    if not main or before not in (signal.default_int_handler, _raise_once):
        yield check
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        heard = pressed and before is _raise_once
        signal.signal(signal.SIGINT, signal.SIG_IGN if heard else before)
    check()
