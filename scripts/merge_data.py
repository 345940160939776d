"""Put together the parts that a job array prepared."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from mlm_jax.commands import cli
from mlm_jax.data.merge import merge_parts


@dataclass(frozen=True)
class Arguments:
    """Put together what `prepare_data.py --part I --num-parts N` made: write the one manifest. No shard is
    moved or rewritten, and merging again changes nothing."""

    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """The --output of the parts."""


def main() -> None:
    """Read the arguments, merge, say what came out."""
    arguments = cli.parse(Arguments)
    print(f"{arguments.folder}: {merge_parts(arguments.folder).summary()}")


if __name__ == "__main__":
    cli.run(main)
