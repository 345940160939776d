"""Run a sweep, or go on with one: every trial with every seed, then a report that compares them."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mlm_jax.commands import cli
from mlm_jax.errors import EXIT_RUN_FAILED, EXIT_STOPPED
from mlm_jax.run.host_memory import keep_freed_memory
from mlm_jax.sweep.plan import load_sweep


@dataclass(frozen=True)
class Arguments:
    """Run a sweep, or go on with one that was stopped: the same command continues where it is.

    Any number of processes, on any machines that share the output folder, may be given the same command: a run that
    one of them trains is left to it. Where file locks do not reach from one machine to the other, --index and --count
    divide the runs."""

    sweep: Annotated[str, tyro.conf.Positional]
    """A Python file with trials() -> dict[str, TrainConfig], as those in configs/ablations."""
    output: str
    """Folder of the sweep: sweep.json, a run folder for every trial and seed, and the report."""
    seeds: int = 3
    """How many runs each trial has, with seeds 0, 1, …"""
    index: int = 0
    """Train only the share of this number, from 0, of --count: for job arrays."""
    count: int = 1
    """How many shares there are."""
    dry_run: bool = False
    """Print the trials, how they differ, and what remains to be trained; train nothing."""


def main() -> int:
    """Train what is left, write the report; 1 where a run failed, 75 where a signal stopped the sweep."""
    keep_freed_memory()
    arguments = cli.parse(Arguments)
    sweep, folder = load_sweep(arguments.sweep), Path(arguments.output)
    # Late, so that what is wrong with the file is told before jax starts.
    from mlm_jax.report.report import write_report
    from mlm_jax.sweep.runner import plan_of, run_sweep

    share = {"num_seeds": arguments.seeds, "index": arguments.index, "count": arguments.count}
    if arguments.dry_run:
        print(plan_of(sweep, folder, **share))
        return 0
    result = run_sweep(sweep, folder, **share, command=f"python {shlex.join(sys.argv)}")
    if result.signal is not None:
        print(f"{folder}: stopped by {result.signal}; the same command goes on", file=sys.stderr)
        return EXIT_STOPPED
    print(f"report: {write_report(folder)}")
    for name in result.of("failed"):
        print(f"failed: {name}", file=sys.stderr)
    return EXIT_RUN_FAILED if result.of("failed") else 0


if __name__ == "__main__":
    cli.run(main)
