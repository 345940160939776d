"""Real runs of a model that trains in a second: its data, its config file, the scripts as child processes."""

import hashlib
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from mlm_jax.config import BertConfig, DataConfig, MeshConfig, OptimizerConfig, TrainConfig
from mlm_jax.config.settings import to_json
from mlm_jax.data.prepare import prepare
from mlm_jax.run.records import read_records
from mlm_jax.text.tokenizer import Tokenizer

ROOT = Path(__file__).parents[1]

# Lives as long as the test session: data that every test reads, and the programs that every child compiles.
_HOME = tempfile.TemporaryDirectory(prefix="mlm_jax_runs_")
_COMPILATION_CACHE = Path(_HOME.name) / "compiled"

MODEL = BertConfig(
    vocabulary_size=300,
    num_layers=1,
    hidden_dim=16,
    num_heads=2,
    intermediate_dim=32,
    max_sequence_length=24,
    pooler=False,
)


@cache
def documents() -> tuple[str, ...]:
    text = resources.files("mlm_jax.demo").joinpath("landmarks.txt").read_text()
    return tuple(line for line in text.splitlines() if line)


@cache
def tokenizer(vocabulary_size: int = 300) -> Tokenizer:
    return Tokenizer.train(documents(), vocabulary_size)


@cache
def prepared(first: int = 0, last: int = 200, vocabulary_size: int = 300) -> Path:
    """Folder of shards that hold those documents."""
    folder = Path(_HOME.name) / f"data_{first}_{last}_{vocabulary_size}"
    text = folder.with_suffix(".txt")
    text.write_text("\n".join(documents()[first:last]))
    prepare([str(text)], tokenizer(vocabulary_size), str(folder))
    return folder


def config_of(output_dir: Path, **changes: Any) -> TrainConfig:
    """Forty steps on one device, with dropout: logged every 2nd, saved every 5th, evaluated every 10th."""
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
        compilation_cache_dir=str(_COMPILATION_CACHE),
    )
    return replace(config, **changes)


def write_config(config: TrainConfig, name: str = "config.json") -> Path:
    """The config as a file beside its run folder."""
    path = Path(config.output_dir).parent / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_json(config))
    return path


def environment(devices: int = 1, *, optimised: bool = False) -> dict[str, str]:
    """Of a child that sees that many devices and, unless `optimised`, compiles quickly."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    if not optimised:
        flags += " --xla_backend_optimization_level=0"
    return os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


def run_script(name: str, *arguments: object, devices: int = 1) -> subprocess.CompletedProcess[str]:
    """`scripts/NAME.py ARGUMENTS`, waited for."""
    return _run_child([f"scripts/{name}.py", *arguments], environment(devices))


def run_module(name: str, *arguments: object, devices: int = 1) -> subprocess.CompletedProcess[str]:
    """`python -m NAME ARGUMENTS`, waited for."""
    return _run_child(["-m", name, *arguments], environment(devices))


def run_python(code: str, *arguments: object, optimised: bool = False) -> subprocess.CompletedProcess[str]:
    """A process of its own that runs `code`, waited for."""
    return _run_child(["-c", code, *arguments], environment(optimised=optimised))


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
    """`scripts/NAME.py ARGUMENTS`, its stderr a pipe that is read line by line."""
    return subprocess.Popen(
        [sys.executable, f"scripts/{name}.py", *map(str, arguments)],
        cwd=ROOT,
        env=environment(devices),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_a_step(child: subprocess.Popen[str]) -> None:
    """Return when the run has told of its first step; nothing of its stderr is left behind before that."""
    assert child.stderr is not None
    lines = []
    for line in child.stderr:
        lines.append(line)
        if line.startswith("step "):
            return
    raise AssertionError(f"ended before its first step: {''.join(lines)}")


@cache
def uninterrupted() -> Path:
    """Run folder of `config_of`, trained by one process from the first step to the last."""
    run = Path(_HOME.name) / "uninterrupted"
    ended = run_script("train", write_config(config_of(run)))
    assert ended.returncode == 0, ended.stderr
    return run


def assert_same_end(run: Path, reference: Path | None = None) -> None:
    """The last checkpoint holds the same bits, and the logs tell the same of every step."""
    reference = reference or uninterrupted()
    last = max(int(path.name) for path in (reference / "checkpoints").iterdir())
    assert arrays_of(run, last) == arrays_of(reference, last)
    assert learned(run / "metrics.jsonl") == learned(reference / "metrics.jsonl")
    assert learned(run / "eval.jsonl") == learned(reference / "eval.jsonl")


def arrays_of(run: Path, step: int) -> dict[str, tuple[str, bytes]]:
    """Parameters, moments and all else of a checkpoint, read by Orbax alone: name to dtype and bits."""
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
    """The lines of a log without what depends on the clock."""
    timed = ("tokens_per_second", "real_tokens_per_second", "sequences_per_second", "step_seconds", "mfu")
    return [{key: value for key, value in record.items() if key not in timed} for record in read_records(log)]


def listing(folder: Path) -> dict[str, str]:
    """Every file below a folder, with its checksum."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in folder.rglob("*")
    }
