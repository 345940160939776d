"""Lets the processes of a run watch each other: if one dies, hangs or fails, all end with an error that names it.

Each process has a record in the key-value store of JAX's coordination service: a beat that a thread increments as long
as the process lives, the number of iterations of its training loop ("turns"), and its current step. Each process reads
the records of all others, and ends with exit code 1 and a one-line error if another process is

    failed    its record has an error
    silent    its beat has not changed for `timeout_seconds`: it was killed, stopped, or disconnected
    stuck     beats continue but turns do not: the others wait for the process with the fewest turns

A collective never returns if a process is missing, so the training loop itself cannot end the run.
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

_RESUME = "rerun the same command to resume from the last checkpoint"
# Number of turns before the longest turn is trusted, and the factor by which a turn may exceed it.
_TURNS_TO_KNOW = 3
_SLACK = 10
_FOREVER_MS = 10**9
# Numbers the runs of this process, which have separate records.
_runs = count()


@dataclass
class _Record:
    """State of a process, as seen by the others."""

    beat: int = 0
    turn: int = 0
    step: int = 0
    limited: bool = False
    """True during a turn of limited duration; otherwise, the number of turns need not change."""
    ended: bool = False
    failure: str | None = None
    verdict: str | None = None
    """Reason for which this process ends the job."""
    name: str = f"host {socket.gethostname()}, pid {os.getpid()}"


class Watchdog:
    """Context manager that watches the other processes of a run. Does nothing in a single process.

    Args:
        timeout_seconds: time after which a silent process ends the job. A stuck process ends the job after the same
            time or ten times the longest turn so far, whichever is longer.
    """

    def __init__(self, timeout_seconds: int) -> None:
        """Creates a watchdog, which starts to watch when its context is entered."""
        self._timeout = timeout_seconds
        self._size, self._index = jax.process_count(), jax.process_index()
        # Every process reads all records, so traffic is quadratic in the number of processes: less frequent in a pod.
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
        """Starts watching."""
        if self._size > 1:
            self._client = ocp.multihost.get_jax_distributed_client()
            self._publish()
            self._stack.enter_context(on_abort(self._last_words))
            for work in (self._exchange, self._watch):
                threading.Thread(target=work, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Reports the end of this process to the others."""
        if self._size == 1:
            return
        if error is None:
            self._me.ended = True
        else:
            if isinstance(error, jax.errors.JaxRuntimeError):
                # A collective failed, probably because a process died. Meanwhile, `_watch` finds out which one.
                self._broken.set()
                time.sleep(12 * self._period)
            self._me.failure = f"{type(error).__name__}: {error}"
        with suppress(jax.errors.JaxRuntimeError):
            self._publish()
        if error is not None:
            # Gives the others time to read it and end.
            time.sleep(3 * self._period)
        self._over.set()
        self._stack.close()

    def heartbeat(self, step: int) -> None:
        """Marks the start of a turn of the training loop, which takes `step`."""
        now = time.monotonic()
        if self._me.limited:
            self._longest_turn = max(self._longest_turn, now - self._turned)
        self._turned = now
        self._me.turn, self._me.step, self._me.limited = self._me.turn + 1, step, True

    def pause(self) -> None:
        """Suspends the time limit until the next heartbeat, for compilation and storage."""
        self._me.limited = False

    def require_same(self, facts: dict[str, Any]) -> None:
        """Compares facts, by name, with those of process 0.

        Raises:
            InputError: the facts differ in some process. All processes raise it.
        """
        if self._size == 1:
            return
        place = f"{self._prefix}/facts_{next(self._comparisons)}"
        self._client.key_value_set(f"{place}/{self._index}", json.dumps(facts))
        # `_watch` detects a process that never writes its facts.
        all_facts = [
            json.loads(self._client.blocking_key_value_get(f"{place}/{process}", _FOREVER_MS))
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

    def _publish(self) -> None:
        record = json.dumps(asdict(self._me))
        self._client.key_value_set(f"{self._prefix}/records/{self._index}", record, allow_overwrite=True)

    def _exchange(self) -> None:
        """Writes and reads records until the run is over. Hangs if process 0, which stores them, hangs."""
        while not self._over.is_set():
            self._me.beat += 1
            try:
                self._publish()
                entries = self._client.key_value_dir_get(f"{self._prefix}/records/")
            except jax.errors.JaxRuntimeError:
                pass
            else:
                self._receive(entries)
            self._over.wait(self._period)

    def _receive(self, entries: list[tuple[str, str]]) -> None:
        now = time.monotonic()
        # While process 0 did not answer, no process could write its record.
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
        """Ends this process if the job cannot continue."""
        looked = time.monotonic()
        for process in range(self._size):
            self._changed[process, "beat"] = self._changed[process, "turn"] = looked
        while not self._over.wait(self._period / 2):
            before, looked = looked, time.monotonic()
            if looked - before > self._timeout / 3:
                # This process was suspended, perhaps with its machine, and has missed records of others.
                self._heard = self._turned = looked
                self._changed = dict.fromkeys(self._changed, looked)
            verdict = self._verdict(looked, dict(self._seen))
            self._me.verdict = verdict
            # Wait, so that the others read the verdict before this process ends, and because this process may be about
            # to fail itself for the same reason.
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
                return f"{self._name(process)} failed: {record.failure}; {_RESUME} once that is fixed"
        # If a collective failed, some process has died, and a few beats are enough to find out which.
        patience = 5 * self._period if self._broken.is_set() else self._timeout
        others = [process for process in range(self._size) if process != self._index]
        running = [process for process in others if not seen.get(process, _Record()).ended]
        if now - self._heard > patience:
            # Without process 0, nothing is known about the others.
            return self._silent([0] if self._index else others, now - self._heard)
        # Only up to the last answer of process 0: later silence is not the fault of the others.
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
        return f"{names} sent no heartbeat for {seconds:.0f} s; {_RESUME}"

    def _name(self, process: int) -> str:
        record = self._seen.get(process)
        if record is None:
            return f"process {process} (never heard from)"
        return f"process {process} ({record.name}, step {record.step:,})"

    def _last_words(self) -> None:
        """Ends a process that the runtime aborts, as it does immediately if process 0 dies."""
        beats = {process: self._changed.get((process, "beat"), -math.inf) for process in range(self._size)}
        oldest = min(beats, key=lambda process: beats[process])
        gone = oldest if max(beats.values()) - beats[oldest] > 4 * self._period else 0
        self._end(self._me.verdict or f"{self._name(gone)} is gone; {_RESUME}")

    def _end(self, message: str) -> None:
        message = f"{message} (process {self._index}, step {self._me.step:,})"
        print(f"error: {message}", file=sys.stderr, flush=True)
        if self._index == 0:
            # Process 0 stores the records, which the others need to find out what happened.
            time.sleep(3 * self._period)
        os._exit(EXIT_RUN_FAILED)
