"""Sweeps of a model that trains in a second."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlm_jax.config import TrainConfig
from mlm_jax.config.settings import to_json
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
    """The file of a sweep with those trials."""
    path = folder / f"{name}.py"
    path.write_text(f"{_FILE}TEXTS = { ({name: to_json(config) for name, config in trials.items()})!r}\n")
    return path
