"""Turns signals that announce the end of a process into a request to stop after the current step."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

# Sent by people and schedulers that want the process to end. SIGXCPU announces the limit of CPU time.
_ALWAYS = (signal.SIGTERM, signal.SIGINT)
# `nohup` makes a process ignore SIGHUP, and a program that calls `train` may use the others itself.
_BY_DEFAULT = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)


class StopRequest:
    """Context manager in which the first signal sets `name`. A Ctrl-C after that has its usual effect.

    Other signals after the first one change nothing: schedulers and closed terminals repeat them while the state is
    being saved. Does nothing outside the main thread, where Python does not deliver signals.
    """

    def __init__(self) -> None:
        """Creates a request that is not set."""
        self.name: str | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        """Installs the handlers."""
        if threading.current_thread() is threading.main_thread():
            taken = (*_ALWAYS, *(number for number in _BY_DEFAULT if _ends_process(number)))
            self._previous = {number: signal.signal(number, self._request) for number in taken}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restores the previous handlers."""
        for number in [*self._previous]:
            self._restore(number)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.name = self.name or signal.Signals(number).name
        self._restore(signal.SIGINT)

    def _restore(self, number: signal.Signals) -> None:
        if number in self._previous:
            handler = self._previous.pop(number)
            # None is a handler that was not installed by Python, and cannot be restored.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _ends_process(number: signal.Signals) -> bool:
    """Returns True if nobody but Python or `commands/process.py` handles a signal."""
    handler = signal.getsignal(number)
    return handler is signal.SIG_DFL or getattr(handler, "ends_command", False)
