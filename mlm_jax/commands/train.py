"""`mlm-jax train`: train a masked language model, or resume a run."""

from collections.abc import Sequence
from dataclasses import dataclass

from mlm_jax.commands.config_flags import parse_config_and_flags
from mlm_jax.config import DistributedConfig
from mlm_jax.errors import EXIT_STOPPED
from mlm_jax.run.host_memory import keep_freed_memory

ABOUT = "Train a masked language model. If the run folder has checkpoints, resume from the newest one."


@dataclass(frozen=True)
class Flags:
    """Flags of this command besides the settings of a run."""

    from_step: int | None = None
    """Resume from the checkpoint of this step; the next checkpoint renames later ones to STEP.superseded."""


def main(arguments: Sequence[str], prog: str) -> int:
    """Reads the config and trains; returns 75 if a signal stopped the run, which the same command then resumes."""
    keep_freed_memory()
    config, flags = parse_config_and_flags(arguments, prog, ABOUT, Flags, before_config=_join)
    _join(config.distributed)
    # Imported late, so that a mistyped setting is reported before jax starts.
    from mlm_jax.run.trainer import train

    return 0 if train(config, from_step=flags.from_step).finished else EXIT_STOPPED


def _join(job: DistributedConfig) -> None:
    from mlm_jax.parallel.distributed import join

    join(job)
