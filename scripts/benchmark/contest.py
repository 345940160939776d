"""Contestants timed in turns, each in a process of its own.

What slows a machine down for a while slows all of them: their ratio within a round holds where seconds do not. A
contestant is a module that calls `serve`; the process that compares them starts one of each with `compete`.
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
"""Does the work once and returns how many units of it that was; it may return only when all is done."""

Steps = Callable[[int], None]
"""Takes so many training steps and returns when all are done."""

_WARM_UPS = 2
_WORDS_LENGTH = 300


@dataclass(frozen=True)
class Contestant:
    """What is measured: a module to be run, and what it is told, as JSON."""

    name: str
    module: str
    settings: Mapping[str, Any]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """Units a second of each round, and what the contestant told of itself."""

    name: str
    rates: list[float]
    about: dict[str, Any]

    @property
    def rate(self) -> float:
        """The median of the rounds."""
        return median(self.rates)

    def ratio_to(self, other: "Result") -> float:
        """How many times as fast as `other`: the median over rounds of the ratio within a round."""
        return median(mine / theirs for mine, theirs in zip(self.rates, other.rates, strict=True))


def compete(
    contestants: Sequence[Contestant], *, rounds: int, seconds: float = threading.TIMEOUT_MAX
) -> list[Result]:
    """Let each do its work once a round, one after the other; after so many seconds they are ended.

    Raises:
        RunError: a contestant ended before its time, with the end of what it wrote; or was ended.
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
        Result(contestant.name, own, told)
        for contestant, own, told in zip(contestants, rates, about, strict=True)
    ]


def serve(prepare: Callable[[dict[str, Any]], tuple[Round, dict[str, Any]]]) -> None:
    """A contestant's main: `prepare` makes the round from the settings and tells of itself; then it is asked."""
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
        with suppress(BrokenPipeError):  # told by `answer`
            print(file=self._process.stdin, flush=True)
        return self.answer()["rate"]

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            if self._late:
                raise RunError(f"{self._name}: ended because its time was over")
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
    """What libraries print goes to stderr; only the answers go where the others read."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        yield answers


@contextmanager
def _last_words() -> Iterator[None]:
    """The error itself ends what is written: after their tracebacks libraries give advice."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        words = (type(error).__name__, " ".join(str(error).split()))
        sys.exit(": ".join(filter(None, words))[:_WORDS_LENGTH])
