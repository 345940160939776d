"""Real runs of a model that trains in a second: its data, its config file, and the scripts, in process or not."""

import contextlib
import fcntl
import hashlib
import io
import os
import runpy
import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mlm_jax.config import BertConfig, DataConfig, MeshConfig, OptimizerConfig, TrainConfig
from mlm_jax.config.settings import to_json
from mlm_jax.preparation.prepare import prepare
from mlm_jax.run.records import read_records
from mlm_jax.text.tokenizer import Tokenizer
from tests.xla_flags import QUICK

ROOT = Path(__file__).parents[1]

# Data and a trained run, made once for all workers. conftest.py creates the folder and removes it at the end.
_SHARED = Path(os.environ["MLM_JAX_TEST_SESSION"])

MODEL = BertConfig(
    vocabulary_size=300,
    num_layers=1,
    hidden_dim=16,
    num_heads=2,
    intermediate_dim=32,
    max_sequence_length=24,
    pooler=False,
)


@contextlib.contextmanager
def _made_once(name: str) -> Iterator[Path | None]:
    """Yields the shared folder to fill, or None if another test has filled it; the other workers wait meanwhile."""
    with (_SHARED / f"{name}.lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = _SHARED / f"{name}.done"
        yield None if done.exists() else _SHARED / name
        done.touch()


@cache
def documents() -> tuple[str, ...]:
    text = resources.files("mlm_jax.demo").joinpath("landmarks.txt").read_text()
    return tuple(line for line in text.splitlines() if line)


@cache
def tokenizer(vocabulary_size: int = 300) -> Tokenizer:
    return Tokenizer.train(documents(), vocabulary_size)


@cache
def prepared(first: int = 0, last: int = 200, vocabulary_size: int = 300) -> Path:
    """Returns a folder with the shards of those documents."""
    name = f"data_{first}_{last}_{vocabulary_size}"
    with _made_once(name) as folder:
        if folder is not None:
            text = folder.with_suffix(".txt")
            text.write_text("\n".join(documents()[first:last]))
            prepare([str(text)], tokenizer(vocabulary_size), str(folder))
    return _SHARED / name


def config_of(output_dir: Path, **changes: Any) -> TrainConfig:
    """Forty steps on one device, with dropout: logs every 2 steps, saves every 5 and evaluates every 10."""
    config = TrainConfig(
        output_dir=str(output_dir),
        model=MODEL,
        data=DataConfig(path=str(prepared()), eval_path=str(prepared(200, 240)), sequence_length=20),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=4),
        mesh=MeshConfig(data=1),
        num_steps=40,
        batch_size=8,
        log_every=2,
        eval_every=10,
        checkpoint_every=5,
        # The environment names one for all tests.
        compilation_cache_dir=None,
    )
    return replace(config, **changes)


def write_config(config: TrainConfig, name: str = "config.json") -> Path:
    """Writes the config next to its run folder."""
    path = Path(config.output_dir).parent / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_json(config))
    return path


def environment(devices: int = 1, *, optimised: bool = False) -> dict[str, str]:
    """Returns variables for a child that has `devices` devices and, unless `optimised`, compiles quickly."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    if not optimised:
        flags += f" {QUICK}"
    return os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


# For children that are killed, or that cannot write whole files: what they cut short would be read by later ones.
CACHE_IS_READ_ONLY = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1e9"}


def run_script(name: str, *arguments: object, devices: int = 1) -> subprocess.CompletedProcess[str]:
    """Runs `scripts/NAME.py ARGUMENTS` in this process, with the first `devices` of its devices."""
    command = [f"scripts/{name}.py", *map(str, arguments)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", list(command))
        patch.chdir(ROOT)
        if devices < jax.device_count():
            visible = jax.devices()[:devices]
            for function in ("devices", "local_devices"):
                patch.setattr(jax, function, lambda *_, **__: list(visible))
            patch.setattr(jax, "device_count", lambda *_: devices)
        # This process is a job of its own, and too late to join another one.
        patch.setattr(jax.distributed, "initialize", _no_job_found)
        # Other tests still need what this process has compiled.
        patch.setattr(jax, "clear_caches", lambda: None)
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = _exit_code_of(command[0])
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


def _no_job_found(**settings: object) -> None:
    raise ValueError("coordinator_address should be defined.")


def _exit_code_of(script: str) -> int:
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def run_script_alone(name: str, *arguments: object, devices: int = 1) -> subprocess.CompletedProcess[str]:
    """Runs `scripts/NAME.py ARGUMENTS` in a process of its own and waits for it."""
    return _run_child([f"scripts/{name}.py", *arguments], environment(devices))


def run_module(name: str, *arguments: object, devices: int = 1) -> subprocess.CompletedProcess[str]:
    """Runs `python -m NAME ARGUMENTS` and waits for it."""
    return _run_child(["-m", name, *arguments], environment(devices))


def run_python(
    code: str, *arguments: object, optimised: bool = False, variables: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs `code` in a process of its own and waits for it."""
    return _run_child(["-c", code, *arguments], environment(optimised=optimised) | (variables or {}))


def _run_child(arguments: list[object], variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def start_script(name: str, *arguments: object, devices: int = 1) -> subprocess.Popen[str]:
    """Starts `scripts/NAME.py ARGUMENTS` in a process that may be killed; its stderr is a pipe."""
    return subprocess.Popen(
        [sys.executable, f"scripts/{name}.py", *map(str, arguments)],
        cwd=ROOT,
        env=environment(devices) | CACHE_IS_READ_ONLY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_a_step(child: subprocess.Popen[str]) -> None:
    """Waits until the run has reported its first step; reads its stderr up to there."""
    assert child.stderr is not None
    lines = []
    for line in child.stderr:
        lines.append(line)
        if line.startswith("step "):
            return
    raise AssertionError(f"ended before its first step: {''.join(lines)}")


@cache
def uninterrupted() -> Path:
    """Returns the run folder of `config_of`, trained by one process without a stop, once per session."""
    run = _SHARED / "uninterrupted"
    with _made_once(run.name) as folder:
        if folder is not None:
            ended = run_script_alone("train", write_config(config_of(folder), "uninterrupted.json"))
            assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr
            run.with_suffix(".stderr").write_text(ended.stderr)
    return run


def told_by_uninterrupted() -> str:
    """Returns what that process wrote to stderr."""
    return uninterrupted().with_suffix(".stderr").read_text()


def assert_same_end(run: Path, reference: Path | None = None) -> None:
    """Asserts that the last checkpoint has the same bits and the logs the same values for every step."""
    reference = reference or uninterrupted()
    last = max(int(path.name) for path in (reference / "checkpoints").iterdir())
    assert arrays_of(run, last) == arrays_of(reference, last)
    assert learned(run / "metrics.jsonl") == learned(reference / "metrics.jsonl")
    assert learned(run / "eval.jsonl") == learned(reference / "eval.jsonl")


def arrays_of(run: Path, step: int) -> dict[str, tuple[str, bytes]]:
    """Returns the dtype and bits of every array of a checkpoint by name, read with Orbax only."""
    folder = run / "checkpoints" / str(step) / "state"
    as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        names = checkpointer.metadata(folder).item_metadata.tree
        arrays = checkpointer.restore(
            folder, ocp.args.PyTreeRestore(restore_args=dict.fromkeys(names, as_numpy))
        )
    bits = {name: (str(array.dtype), np.asarray(array).tobytes()) for name, array in arrays.items()}
    assert any("mu" in name for name in bits), "no first moments among them"
    return bits


def learned(log: Path) -> list[dict[str, Any]]:
    """Returns the records of a log without the values that depend on the clock."""
    timed = ("tokens_per_second", "real_tokens_per_second", "sequences_per_second", "step_seconds", "mfu")
    return [{key: value for key, value in record.items() if key not in timed} for record in read_records(log)]


def listing(folder: Path) -> dict[str, str]:
    """Returns the checksum of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in folder.rglob("*")
    }
