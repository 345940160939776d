"""`mlm-jax train`: train a masked language model, or resume a run."""

from collections.abc import Sequence

from mlm_jax.commands.config_flags import parse_config_and_flags
from mlm_jax.config import DistributedConfig
from mlm_jax.errors import EXIT_STOPPED
from mlm_jax.run.host_memory import keep_freed_memory

ABOUT = "Train a masked language model. A run folder that has checkpoints is resumed from the newest one."


def main(arguments: Sequence[str], prog: str) -> int:
    """Reads the config and trains; returns 75 if a signal stopped the run and rerunning the command resumes it."""
    keep_freed_memory()
    config, _ = parse_config_and_flags(arguments, prog, ABOUT, before_config=_join)
    _join(config.distributed)
    # Imported late, so that a mistyped setting is reported before jax starts.
    from mlm_jax.run.trainer import train

    return 0 if train(config).finished else EXIT_STOPPED


def _join(job: DistributedConfig) -> None:
    from mlm_jax.parallel.distributed import join

    join(job)
