"""Sweeps of a model that trains in a second, and a substitute for `train` that trains nothing."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlm_jax.config import TrainConfig
from mlm_jax.config.settings import to_json
from mlm_jax.run.trainer import TrainResult
from tests.report.sweeps import evaluation_record, step_record, write_lines
from tests.run_small import config_of

_FILE = '''"""Two learning rates."""

from mlm_jax.config import TrainConfig
from mlm_jax.config.settings import from_json

def trials():
    return {name: from_json(TrainConfig, text) for name, text in TEXTS.items()}

'''


def short(**changes: Any) -> TrainConfig:
    """Six steps of `config_of`."""
    settings: dict[str, Any] = {"num_steps": 6, "eval_every": 3, "checkpoint_every": 3}
    return config_of(Path("unused"), **settings | changes)


def with_rate(learning_rate: float, config: TrainConfig | None = None) -> TrainConfig:
    config = config or short()
    return replace(config, optimizer=replace(config.optimizer, learning_rate=learning_rate))


def write_sweep(folder: Path, trials: Mapping[str, TrainConfig], name: str = "rates") -> Path:
    """Writes the file of a sweep with these trials."""
    path = folder / f"{name}.py"
    path.write_text(f"{_FILE}TEXTS = { ({name: to_json(config) for name, config in trials.items()})!r}\n")
    return path


def pretend_to_train(config: TrainConfig, *, on_step: Callable[[int], None], **options: Any) -> TrainResult:
    """Replaces `train`: calls `on_step` for every step and writes the logs of a finished run."""
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for step in range(1, config.num_steps + 1):
        on_step(step)
    logged = range(config.log_every, config.num_steps + 1, config.log_every)
    write_lines(folder / "metrics.jsonl", [step_record(step, 2.0) for step in logged])
    write_lines(folder / "eval.jsonl", [evaluation_record(config.num_steps, 2.0)])
    (folder / "config.json").write_text(to_json(config))
    return TrainResult(folder, config.num_steps, finished=True)
