"""Train a masked language model, or go on with a run that was stopped: train.py CONFIG.py [--setting value …]."""

import sys

from mlm_jax.commands import cli
from mlm_jax.commands.config_flags import parse_config
from mlm_jax.errors import EXIT_STOPPED
from mlm_jax.run.host_memory import keep_freed_memory


def main() -> int:
    """Read the config, train; 75 where a signal stopped the run and the same command goes on."""
    keep_freed_memory()
    config = parse_config(sys.argv[1:], prog="train.py")
    # Late, so that a mistyped setting is told before jax starts.
    from mlm_jax.parallel.distributed import join
    from mlm_jax.run.trainer import train

    join(config.distributed)
    return 0 if train(config).finished else EXIT_STOPPED


if __name__ == "__main__":
    cli.run(main)
