"""The processes of a run watch each other: one that dies, hangs or fails ends all of them, and is named.

Each process keeps a record of itself in the key-value store of JAX's coordination service: a beat that a thread
counts up as long as the process lives, the turns its loop has made, the step it has begun. Each reads those of all
others and ends the process, with exit code 1 and one line, where

    failed    a record says that its process ends with an error
    silent    a beat stands still for `timeout_seconds`: killed, stopped, or cut off
    stuck     beats go on but the turns do not: the process with the fewest turns is what the others wait for

A collective that a process is missing from never returns, so no other thread could end the run.
"""

import json
import math
import os
import socket
import sys
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from itertools import count
from types import TracebackType
from typing import Any, Self

import jax
import orbax.checkpoint as ocp

from mlm_jax.errors import EXIT_RUN_FAILED, InputError
from mlm_jax.parallel.abort import on_abort

_RESUME = "the same command goes on from the last checkpoint"
# Turns of which the longest is taken for what a turn takes, and how often it may be exceeded.
_TURNS_TO_KNOW = 3
_SLACK = 10
_FOR_EVER = 10**9  # milliseconds
# Every run of a process reads records of its own.
_runs = count()


@dataclass
class _Record:
    """What a process tells of itself."""

    beat: int = 0
    turn: int = 0
    step: int = 0
    limited: bool = False
    """Whether a turn is under way that ends by itself soon; otherwise turns may stand still."""
    ended: bool = False
    failure: str | None = None
    verdict: str | None = None
    """Why it ends the job."""
    name: str = f"host {socket.gethostname()}, pid {os.getpid()}"


class Watchdog:
    """A context around a run: this process among the others. With one process nothing is watched.

    Args:
        timeout_seconds: after how long a silent process ends the job. A stuck one does so after as long, or after ten
            times the longest turn so far where that is longer.
    """

    def __init__(self, timeout_seconds: int) -> None:
        """Not begun; see the class."""
        self._timeout = timeout_seconds
        self._size, self._index = jax.process_count(), jax.process_index()
        # Every process reads the records of all: their traffic is quadratic in the processes, and rarer in a pod.
        self._period = min(timeout_seconds / 12, max(1.0, self._size / 64))
        self._prefix = f"mlm_jax/run_{next(_runs)}"
        self._comparisons = count()
        self._me = _Record()
        self._seen: dict[int, _Record] = {}
        self._changed: dict[tuple[int, str], float] = {}
        self._heard = self._turned = time.monotonic()
        self._longest_turn = 0.0
        self._broken = threading.Event()
        self._over = threading.Event()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Begin to watch."""
        if self._size > 1:
            self._client = ocp.multihost.get_jax_distributed_client()
            self._tell()
            self._stack.enter_context(on_abort(self._last_words))
            for work in (self._talk, self._watch):
                threading.Thread(target=work, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell the others how the run ended here."""
        if self._size == 1:
            return
        if error is None:
            self._me.ended = True
        else:
            if isinstance(error, jax.errors.JaxRuntimeError):
                # A collective broke: most likely because a process is gone, which `_watch` will have named by then.
                self._broken.set()
                time.sleep(12 * self._period)
            self._me.failure = f"{type(error).__name__}: {error}"
        with suppress(jax.errors.JaxRuntimeError):
            self._tell()
        if error is not None:
            # For the others to read it; they end then.
            time.sleep(3 * self._period)
        self._over.set()
        self._stack.close()

    def heartbeat(self, step: int) -> None:
        """Call it once a turn of the loop, when the turn that begins `step` begins."""
        now = time.monotonic()
        if self._me.limited:
            self._longest_turn = max(self._longest_turn, now - self._turned)
        self._turned = now
        self._me.turn, self._me.step, self._me.limited = self._me.turn + 1, step, True

    def pause(self) -> None:
        """Until the next turn any time may pass: for what compilers and storage do."""
        self._me.limited = False

    def require_same(self, facts: dict[str, Any]) -> None:
        """Compare facts, by name, with those of process 0.

        Raises:
            InputError: a process has others, which is then told in all of them.
        """
        if self._size == 1:
            return
        place = f"{self._prefix}/facts_{next(self._comparisons)}"
        self._client.key_value_set(f"{place}/{self._index}", json.dumps(facts))
        # One that never comes is found by `_watch`.
        all_facts = [
            json.loads(self._client.blocking_key_value_get(f"{place}/{process}", _FOR_EVER))
            for process in range(self._size)
        ]
        for process, theirs in enumerate(all_facts):
            for name in all_facts[0] | theirs:
                first, other = all_facts[0].get(name), theirs.get(name)
                if first != other:
                    raise InputError(
                        f"{name}: {json.dumps(first)} in process 0, {json.dumps(other)} in process {process}: "
                        "must be the same in all"
                    )

    def _tell(self) -> None:
        record = json.dumps(asdict(self._me))
        self._client.key_value_set(f"{self._prefix}/records/{self._index}", record, allow_overwrite=True)

    def _talk(self) -> None:
        """Writes and reads records until the run is over. Hangs where process 0, which keeps them, does."""
        while not self._over.is_set():
            self._me.beat += 1
            try:
                self._tell()
                entries = self._client.key_value_dir_get(f"{self._prefix}/records/")
            except jax.errors.JaxRuntimeError:
                pass
            else:
                self._hear(entries)
            self._over.wait(self._period)

    def _hear(self, entries: list[tuple[str, str]]) -> None:
        now = time.monotonic()
        # While process 0 gave no answer nobody could tell anything.
        lost = max(0.0, now - self._heard - 2 * self._period)
        self._changed = {key: changed + lost for key, changed in self._changed.items()}
        for key, record in entries:
            self._take(int(key.rpartition("/")[2]), _Record(**json.loads(record)), now)
        self._heard = now

    def _take(self, process: int, record: _Record, now: float) -> None:
        before = self._seen.get(process, _Record())
        for field in ("beat", "turn"):
            if getattr(before, field) != getattr(record, field):
                self._changed[process, field] = now
        if not record.limited:
            self._changed[process, "turn"] = now
        self._seen[process] = record

    def _watch(self) -> None:
        """Ends this process when it is of no use any more."""
        looked = time.monotonic()
        for process in range(self._size):
            self._changed[process, "beat"] = self._changed[process, "turn"] = looked
        while not self._over.wait(self._period / 2):
            before, looked = looked, time.monotonic()
            if looked - before > self._timeout / 3:
                # This process stood still itself, as a machine that is moved does: it has missed what others told.
                self._heard = self._turned = looked
                self._changed = dict.fromkeys(self._changed, looked)
            verdict = self._verdict(looked, dict(self._seen))
            self._me.verdict = verdict
            # For the others to say the same: once this process has ended they would know only that it is gone. And what
            # another failed of, this process may be about to find out by itself.
            if verdict is not None and not self._over.wait(3 * self._period) and self._me.failure is None:
                self._end(verdict)
            looked = time.monotonic()

    def _verdict(self, now: float, seen: dict[int, _Record]) -> str | None:
        for process, record in seen.items():
            if process == self._index:
                continue
            if record.verdict is not None:
                return record.verdict
            if record.failure is not None:
                return f"{self._name(process)} failed: {record.failure}; {_RESUME} once that is mended"
        # Where a collective broke somebody is gone, and nothing more is waited for than a few beats.
        patience = 5 * self._period if self._broken.is_set() else self._timeout
        others = [process for process in range(self._size) if process != self._index]
        running = [process for process in others if not seen.get(process, _Record()).ended]
        if now - self._heard > patience:
            # Nothing is known of the others either.
            return self._silent([0] if self._index else others, now - self._heard)
        # Up to the last answer: while process 0 gives none, that another is not heard of is no fault of that one.
        still = {process: self._heard - self._changed[process, "beat"] for process in running}
        silent = [process for process in running if still[process] > patience]
        if silent:
            return self._silent(silent, min(still[process] for process in silent))
        return self._stuck(now, seen)

    def _stuck(self, now: float, seen: dict[int, _Record]) -> str | None:
        if not self._me.limited or self._me.turn < _TURNS_TO_KNOW:
            return None
        limit = max(self._timeout, _SLACK * self._longest_turn)
        turns = {process: record.turn for process, record in seen.items()}
        waited_for = [process for process, turn in turns.items() if turn == min(turns.values())]
        still = min(self._heard - self._changed[process, "turn"] for process in turns)
        if now - self._turned < limit or still < limit:
            return None
        names = ", ".join(self._name(process) for process in waited_for)
        return f"{names} made no progress for {still:.0f} s (distributed.timeout_seconds); {_RESUME}"

    def _silent(self, processes: list[int], seconds: float) -> str:
        names = ", ".join(self._name(process) for process in processes)
        return f"{names} gave no sign of life for {seconds:.0f} s; {_RESUME}"

    def _name(self, process: int) -> str:
        record = self._seen.get(process)
        if record is None:
            return f"process {process} (never heard of)"
        return f"process {process} ({record.name}; in step {record.step:,})"

    def _last_words(self) -> None:
        """Of a process that the runtime aborts, which it does at once where process 0 is gone."""
        beats = {process: self._changed.get((process, "beat"), -math.inf) for process in range(self._size)}
        oldest = min(beats, key=lambda process: beats[process])
        gone = oldest if max(beats.values()) - beats[oldest] > 4 * self._period else 0
        self._end(self._me.verdict or f"{self._name(gone)} is gone; {_RESUME}")

    def _end(self, message: str) -> None:
        message = f"{message} (process {self._index}, in step {self._me.step:,})"
        print(f"error: {message}", file=sys.stderr, flush=True)
        if self._index == 0:
            # Where the records are: without it the others could neither read nor tell what happened.
            time.sleep(3 * self._period)
        os._exit(EXIT_RUN_FAILED)
