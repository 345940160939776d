"""Times contestants in turn, each in its own process.

A machine that is slow for a while is slow for all contestants, so ratios within a round are more stable than times. A
contestant is a module that calls `serve`; `compete` starts a process for each contestant.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from statistics import median
from typing import IO, Any

from mlm_jax.errors import RunError

Round = Callable[[], float]
"""Does the work once, waits for its end, and returns the number of units of work."""

Steps = Callable[[int], None]
"""Takes the given number of training steps and returns when all are done."""

_WARM_UPS = 2
_MAX_MESSAGE_LENGTH = 300


@dataclass(frozen=True)
class Contestant:
    """A module to measure, and the settings passed to it as JSON."""

    name: str
    module: str
    settings: Mapping[str, Any]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """Units per second in each round, and details reported by the contestant."""

    name: str
    rates: list[float]
    about: dict[str, Any]

    @property
    def rate(self) -> float:
        """Median over the rounds."""
        return median(self.rates)

    def ratio_to(self, other: "Result") -> float:
        """Returns the speed relative to `other`: the median of the ratios within a round."""
        return median(mine / theirs for mine, theirs in zip(self.rates, other.rates, strict=True))


def compete(
    contestants: Sequence[Contestant], *, rounds: int, seconds: float = threading.TIMEOUT_MAX
) -> list[Result]:
    """Lets each contestant do its work once per round, one after the other, and ends all of them after `seconds`.

    Raises:
        RunError: a contestant failed (the message has its last line) or ran out of time.
    """
    with tempfile.TemporaryDirectory() as folder:
        running = [
            _Running(contestant, os.path.join(folder, f"{i}.log")) for i, contestant in enumerate(contestants)
        ]

        def give_up() -> None:
            for process in running:
                process.give_up()

        timer = threading.Timer(seconds, give_up)
        timer.start()
        try:
            about = [process.answer() for process in running]
            for _ in range(_WARM_UPS):
                for process in running:
                    process.ask()
            rates: list[list[float]] = [[] for _ in running]
            for _ in range(rounds):
                for process, own in zip(running, rates, strict=True):
                    own.append(process.ask())
        finally:
            timer.cancel()
            for process in running:
                process.end()
    return [
        Result(contestant.name, own, details)
        for contestant, own, details in zip(contestants, rates, about, strict=True)
    ]


def serve(prepare: Callable[[dict[str, Any]], tuple[Round, dict[str, Any]]]) -> None:
    """Runs a contestant: `prepare` creates the round from the settings, and every line on stdin runs it once."""
    with _own_stdout() as answers, _last_words():
        work, about = prepare(json.loads(sys.argv[1]))
        print(json.dumps(about), file=answers, flush=True)
        for _ in sys.stdin:
            started = time.perf_counter()
            units = work()
            print(json.dumps({"rate": units / (time.perf_counter() - started)}), file=answers, flush=True)


class _Running:
    def __init__(self, contestant: Contestant, log: str) -> None:
        self._name, self._log, self._late = contestant.name, log, False
        with open(log, "w") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", contestant.module, json.dumps(dict(contestant.settings))],
                env=os.environ | dict(contestant.environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )

    def ask(self) -> float:
        with suppress(BrokenPipeError):  # reported by `answer`
            print(file=self._process.stdin, flush=True)
        return self.answer()["rate"]

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            if self._late:
                raise RunError(f"{self._name}: ran out of time")
            with open(self._log) as written:
                last = (written.read().strip().splitlines() or ["nothing was written"])[-1]
            raise RunError(f"{self._name}: ended with {code}: {last}")
        return json.loads(line)

    def give_up(self) -> None:
        self._late = True
        self._process.kill()

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def _own_stdout() -> Iterator[IO[str]]:
    """Redirects the output of libraries to stderr, and yields the real stdout for the answers."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        yield answers


@contextmanager
def _last_words() -> Iterator[None]:
    """Writes the error message as the last line, because some libraries print advice after the traceback."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        parts = (type(error).__name__, " ".join(str(error).split()))
        sys.exit(": ".join(filter(None, parts))[:_MAX_MESSAGE_LENGTH])
