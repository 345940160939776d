"""Prepares the process of a command: its standard streams can be written, and no Ctrl-C is lost."""

import contextlib
import io
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

from mlm_jax.errors import EXIT_INTERRUPTED

_RETRY_SECONDS = 0.02


def open_streams() -> None:
    """Makes the standard streams usable, whatever they are connected to.

    A closed one becomes /dev/null, because the next file that is opened, such as a checkpoint, would get its number and
    all messages. Characters that the terminal's encoding lacks are escaped. What cannot be written to stderr (its
    reader has gone, its disk is full, its terminal is closed) is dropped, because a run matters more than its messages.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # returns the lowest free number
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper):
        # In UTF-8, "surrogateescape" writes the bytes of a file name as they are.
        is_utf8 = sys.stdout.encoding.lower() == "utf-8"
        if sys.stdout.errors == "strict" or not is_utf8:
            sys.stdout.reconfigure(errors="backslashreplace")
    if sys.stderr is sys.__stderr__ and not isinstance(getattr(sys.stderr, "buffer", None), _Messages):
        encoding = sys.stderr.encoding if sys.stderr is not None else "utf-8"
        sys.stderr = io.TextIOWrapper(
            _Messages(2), encoding=encoding, errors="backslashreplace", line_buffering=True
        )


def as_text(argument: str) -> str:
    """Returns an argument of the command line as text; in ASCII locales, Python has its UTF-8 as surrogates."""
    is_text = argument.isascii() or not any("\ud800" <= character <= "\udfff" for character in argument)
    return argument if is_text else os.fsencode(argument).decode(errors="surrogateescape")


class _Messages(io.BufferedWriter):
    def __init__(self, number: int) -> None:
        super().__init__(_WrittenIfPossible(number, "w", closefd=False))


class _WrittenIfPossible(io.FileIO):
    def write(self, data: Any) -> int:
        with contextlib.suppress(OSError):
            return super().write(data) or len(data)
        return len(data)


def flush_stdout() -> bool:
    """Flushes stdout. Returns False if that failed; then everything that is still to be written is dropped."""
    try:
        sys.stdout.flush()
    except OSError:
        # Otherwise, Python tries again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def stdout_lost_its_reader() -> bool:
    """Returns True if stdout is a pipe that nobody reads any more."""
    poll = select.poll()
    poll.register(1)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


class Terminated(SystemExit):
    """SIGTERM or SIGHUP ends the command; the code is 128 + the number of the signal, as shells report it."""

    code: int


# `nohup` makes a process ignore SIGHUP.
_ENDING = (signal.SIGTERM, signal.SIGHUP)
TERMINATED = tuple(128 + number for number in _ENDING)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Makes the first Ctrl-C, SIGTERM or SIGHUP within the block end the command, whatever runs when it arrives.

    While a module is imported, the process ends at once: extension modules crash on a KeyboardInterrupt or turn it into
    another error, and nothing has been written yet that must be cleaned up. Otherwise, KeyboardInterrupt or Terminated
    is raised, so that temporary files are removed, and raised again if it was in a place where Python ignores
    exceptions, such as jax's callback of the garbage collector.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    taken = (signal.SIGINT, *(number for number in _ENDING if signal.getsignal(number) is signal.SIG_DFL))
    handlers, hook = {number: signal.signal(number, _interrupt) for number in taken}, sys.unraisablehook

    def report(unraisable: "sys.UnraisableHookArgs") -> None:
        error = unraisable.exc_value
        if isinstance(error, KeyboardInterrupt | Terminated):
            number = error.code - 128 if isinstance(error, Terminated) else signal.SIGINT
            again = threading.Timer(_RETRY_SECONDS, os.kill, (os.getpid(), number))
            again.daemon = True
            again.start()
        else:
            hook(unraisable)

    sys.unraisablehook = report
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        sys.unraisablehook = hook


def _interrupt(number: int, frame: FrameType | None) -> None:
    code = EXIT_INTERRUPTED if number == signal.SIGINT else 128 + number
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            print("interrupted" if number == signal.SIGINT else "terminated", file=sys.stderr)
            exit_now(code)
        frame = frame.f_back
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated(code)


# Tells a run that its own handlers may replace this one.
_interrupt.ends_command = True  # type: ignore[attr-defined]


def exit_now(code: int) -> NoReturn:
    """Ends the process without waiting for its threads or for other processes of its job."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(code)
