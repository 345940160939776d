"""`mlm-jax merge`: merge the parts that a job array prepared."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlm_jax.commands.flags import parse, positional


@dataclass(frozen=True)
class Arguments:
    """Merge the parts written by `mlm-jax prepare --part I --num-parts N` under one manifest.

    No shard is moved or rewritten, and merging again changes nothing."""

    folder: str = positional("DATA")
    """Folder passed as --output when the parts were prepared."""


def main(arguments: Sequence[str], prog: str) -> None:
    """Merges the parts and prints a summary."""
    parsed = parse(Arguments, arguments, prog)
    from mlm_jax.preparation.merge import merge_parts
    from mlm_jax.preparation.prepare import EVALUATION_FOLDER
    from mlm_jax.shards.folders import LocalFolder
    from mlm_jax.shards.manifest import read_manifest
    from mlm_jax.shards.totals import Totals

    print(f"{parsed.folder}: {merge_parts(parsed.folder).summary()}")
    evaluation = Path(parsed.folder) / EVALUATION_FOLDER
    if evaluation.is_dir():
        print(f"{evaluation}: {Totals.of_manifest(read_manifest(LocalFolder(evaluation))).summary()}")
