"""`mlm-jax ablate`: run a sweep, and write a report that compares its trials."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlm_jax.commands.flags import parse, positional, required
from mlm_jax.errors import EXIT_RUN_FAILED, EXIT_STOPPED
from mlm_jax.files.targets import check_target
from mlm_jax.run.host_memory import keep_freed_memory


@dataclass(frozen=True)
class Arguments:
    """Run a sweep: train every trial with every seed, then compare them. Rerun the command to resume.

    Any number of processes, on any machines that share the output folder, may run the same command: each run is
    trained by exactly one of them. If file locks do not work between the machines, divide the runs with --index
    and --count."""

    sweep: str = positional("SWEEP")
    """A Python file with trials() -> dict[str, TrainConfig], or a shipped one, such as ablations/norm."""
    output: str = required("DIR")
    """Folder for sweep.json, a run folder per trial and seed, and the report."""
    seeds: int = 3
    """Number of runs per trial, with seeds 0, 1, …"""
    index: int = 0
    """Index of this job in an array of --count jobs, from 0; it trains its share of the runs."""
    count: int = 1
    """Number of jobs that divide the runs."""
    dry_run: bool = False
    """Print the trials, their differences and the remaining runs; train nothing."""


def main(arguments: Sequence[str], prog: str) -> int:
    """Trains the remaining runs and writes the report; returns 1 if a run failed, 75 if a signal stopped the sweep."""
    parsed = parse(Arguments, arguments, prog)
    check_target(parsed.output)
    from mlm_jax.sweep.plan import load_sweep

    keep_freed_memory()
    sweep, folder = load_sweep(parsed.sweep), Path(parsed.output)
    # Imported late, so that errors in the file are reported before jax starts.
    from mlm_jax.report.report import write_report
    from mlm_jax.sweep.runner import plan_of, run_sweep

    share = {"num_seeds": parsed.seeds, "index": parsed.index, "count": parsed.count}
    if parsed.dry_run:
        print(plan_of(sweep, folder, **share))
        return 0
    result = run_sweep(sweep, folder, **share, command=f"{prog} {shlex.join(arguments)}")
    if result.signal is not None:
        print(f"{folder}: stopped by {result.signal}; rerun the same command to resume", file=sys.stderr)
        return EXIT_STOPPED
    print(f"report: {write_report(folder)}")
    for name in result.of("failed"):
        print(f"failed: {name}", file=sys.stderr)
    return EXIT_RUN_FAILED if result.of("failed") else 0
