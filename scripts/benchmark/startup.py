"""`benchmark.py startup`: from the command to the first step, with nothing compiled before and with a warm cache."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from mlm_jax.errors import RunError
from scripts.benchmark.corpus import prepare_for_benchmark, text_files
from scripts.benchmark.table import Table

_FIRST_STEP = "step 1/"


def measure_startup(train_script: Path, *, rounds: int) -> list[Table]:
    """Runs of BERT-tiny by that script, on the demo's text, each ended after its first step.

    Raises:
        RunError: a run ended before.
    """
    with tempfile.TemporaryDirectory(prefix="mlm_jax_benchmark_") as name:
        folder = Path(name)
        data = prepare_for_benchmark(text_files(()), folder / "data")
        config = folder / "config.py"
        config.write_text(_CONFIG.format(data=str(data), cache=str(folder / "cache")))
        cold = [_seconds_to_first_step(train_script, config, folder / "run_cold")]
        warm = [
            _seconds_to_first_step(train_script, config, folder / f"run_{number}") for number in range(rounds)
        ]
    return [
        Table(
            "From the command to the end of the first step, BERT-tiny",
            ("compilation cache", "seconds", "fastest", "slowest"),
            [(label, median(s), min(s), max(s)) for label, s in (("cold, once", cold), ("warm", warm))],
        )
    ]


_CONFIG = """
from dataclasses import replace
from mlm_jax.config import DataConfig, TrainConfig
from mlm_jax.config.presets import PRESETS

def config() -> TrainConfig:
    return TrainConfig(
        model=replace(PRESETS["bert_tiny_en_uncased"], pooler=False),
        data=DataConfig(path={data!r}, sequence_length=128),
        num_steps=1000,
        log_every=1,
        compilation_cache_dir={cache!r},
    )
"""


def _seconds_to_first_step(train_script: Path, config: Path, output: Path) -> float:
    started = time.perf_counter()
    run = subprocess.Popen(
        [sys.executable, train_script, config, "--output-dir", output],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ,
        text=True,
    )
    written = []
    assert run.stderr is not None
    for line in run.stderr:
        written.append(line)
        if line.startswith(_FIRST_STEP):
            seconds = time.perf_counter() - started
            run.kill()
            run.communicate()
            return seconds
    raise RunError(f"{config}: the run ended before its first step: {written[-1].strip() if written else ''}")
