"""Jobs of several processes on this machine, with simulated devices, connected over loopback."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlm_jax.config import MeshConfig, OptimizerConfig, TrainConfig
from tests.run_small import MODEL, ROOT, config_of, environment

# Start of the scripts of a job.
JOIN = """
import os, signal, sys, time
from mlm_jax.commands.config_flags import parse_config
from mlm_jax.parallel.distributed import join
config = parse_config(sys.argv[1:], prog="")
join(config.distributed)
"""

# Any mesh of eight devices divides it.
WIDE = replace(MODEL, num_heads=8, vocabulary_multiple=8)

# Seconds; long enough for imports on a busy machine.
_PATIENCE = 300


@dataclass(frozen=True)
class Ended:
    """How a process of a job ended."""

    code: int
    stderr: str
    seconds: float
    """Time since the call that waited for it."""


class Job:
    """Starts `processes` processes of one command; their stderr goes to files in `folder`.

    `arguments` is one list for all processes or one list for each. Flags tell each process its number, or, with
    `scheduler_variables`, the environment variables that this function returns for the number.
    """

    def __init__(
        self,
        folder: Path,
        processes: int,
        devices: int,
        arguments: Sequence[object] | Sequence[Sequence[object]],
        *,
        timeout_seconds: int = 15,
        scheduler_variables: Callable[[int], dict[str, str]] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        port = free_port()
        each = list(arguments) if isinstance(arguments[0], list) else [arguments] * processes
        self._logs = [folder / f"process_{process}.log" for process in range(processes)]
        self.processes = []
        for process, log in enumerate(self._logs):
            place = {
                "coordinator": f"127.0.0.1:{port}",
                "num-processes": processes,
                "process-id": process,
                "timeout-seconds": timeout_seconds,
            }
            flags = [f"--distributed.{name}={value}" for name, value in place.items()]
            variables = environment(devices)
            if scheduler_variables is not None:
                flags, variables = [], variables | scheduler_variables(process)
            with log.open("w") as stderr:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, *map(str, each[process]), *flags],
                        cwd=ROOT,
                        env=variables,
                        stdout=subprocess.DEVNULL,
                        stderr=stderr,
                    )
                )

    def stderr(self, process: int) -> str:
        return self._logs[process].read_text()

    def wait_for(self, text: str, process: int = 0) -> None:
        """Waits until that process has written `text` to stderr."""
        end = time.monotonic() + _PATIENCE
        while text not in self.stderr(process):
            assert self.processes[process].poll() is None, self.stderr(process)
            assert time.monotonic() < end, self.stderr(process)
            time.sleep(0.05)

    def ended(self, *processes: int) -> list[Ended]:
        """Waits for those processes, by default all, and returns how they ended."""
        start = time.monotonic()
        found = []
        for process in processes or range(len(self.processes)):
            try:
                code = self.processes[process].wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                self.kill()
                raise AssertionError(f"process {process} still runs: {self.stderr(process)}") from None
            found.append(Ended(code, self.stderr(process), time.monotonic() - start))
        return found

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_job(folder: Path, processes: int, devices: int, *arguments: object) -> list[str]:
    """Runs a command in that many processes, asserts that all succeed, and returns what each wrote to stderr."""
    ended = Job(folder, processes, devices, list(map(str, arguments)), timeout_seconds=60).ended()
    assert [end.code for end in ended] == [0] * processes, "\n".join(end.stderr for end in ended)
    return [end.stderr for end in ended]


def wide_config(folder: Path, **changes: Any) -> TrainConfig:
    """Returns a config of twelve steps for any mesh of eight devices."""
    defaults = {
        "model": WIDE,
        "mesh": MeshConfig(),
        "optimizer": OptimizerConfig(learning_rate=1e-3, warmup_steps=2),
        "num_steps": 12,
        "log_every": 1,
        "eval_every": 6,
        "checkpoint_every": 6,
    }
    return config_of(folder, **defaults | changes)
