"""Formats numbers, settings and circumstances consistently in all files of a report."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from mlm_jax.config.settings import flatten
from mlm_jax.report.results import TrialResult
from mlm_jax.report.state import RunState, SweepState

COSTS_NOTE = (
    "Seconds are the wall time of a run's last start, including compilation and evaluations; tokens/s are over "
    "training steps only."
)


def shown(figure: float | None, form: str) -> str:
    """Formats a number with a format such as `.2%`; returns a dash for None."""
    return "–" if figure is None else format(figure, form)


def shown_count(count: float | None) -> str:
    """Formats a count as three digits with a metric prefix, such as `4.10 M`; returns a dash for None."""
    if count is None:
        return "–"
    prefixes, power = ("", " k", " M", " G", " T"), 0
    while count >= 999.5 and power < len(prefixes) - 1:
        count, power = count / 1000, power + 1
    decimals = 0 if not power or count >= 99.95 else 1 if count >= 9.995 else 2
    return f"{count:.{decimals}f}{prefixes[power]}"


def shown_loss(result: TrialResult) -> str:
    """Formats the mean and standard deviation of the loss."""
    if result.loss.mean is None:
        return "–"
    spread = "" if result.loss.deviation is None else f" ± {result.loss.deviation:.4f}"
    return f"{result.loss.mean:.4f}{spread}"


def shown_setting(value: Any) -> str:
    """Formats a setting as JSON, with strings unquoted."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def shown_changes(result: TrialResult) -> dict[str, str]:
    """Returns the formatted settings of the trial that differ from the baseline."""
    return {name: shown_setting(value) for name, value in result.changes.items()}


def count_statuses(runs: Sequence[RunState]) -> str:
    """Returns a summary such as `8 of 9 runs finished, 1 failed`."""
    counts = Counter[str](run.status for run in runs)
    words = {"failed": "failed", "started": "running or killed", "not started": "not started"}
    others = [f"{counts[status]} {word}" for status, word in words.items() if counts[status]]
    return ", ".join([f"{counts['finished']} of {len(runs)} runs finished", *others])


def notes_of(sweep: SweepState) -> list[str]:
    """Returns notes that explain the results table, without markup."""
    notes = [
        "Evaluation loss: at the last step of each finished run, as mean ± standard deviation over the seeds; lower is "
        "better. Perplexity is exp of the mean loss.",
        f"Difference: from {sweep.baseline}, paired by seed, with the 95% t interval of the mean. The interval "
        "describes reruns with other seeds, evaluated on the same text. If it includes zero, no difference was seen, "
        "which does not mean that there is none.",
    ]
    if len(sweep.trials) > 2:
        notes.append(
            f"Each interval is for a single comparison: {len(sweep.trials) - 1} trials are compared with one baseline, "
            "without a correction for multiple comparisons."
        )
    return notes


def circumstances(runs: Sequence[RunState]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Returns command, machine and versions of the runs, by name.

    If a name has several values, each comes with its number of runs, such as `2 runs`.
    """
    known = [circumstances_of(run) for run in runs]
    found = []
    for name in dict.fromkeys(name for run in known for name in run):
        counts = Counter(str(run[name]) for run in known if name in run)
        several = len(counts) > 1
        values = [
            (value, f"{count} {'run' if count == 1 else 'runs'}" if several else "")
            for value, count in counts.items()
        ]
        found.append((name.partition(".")[2] or name, values))
    return found


def circumstances_of(run: RunState) -> dict[str, Any]:
    """Returns `command`, `machine.…` and `versions.…` of a run that has ended."""
    if run.outcome is None:
        return {}
    outcome = run.outcome
    return flatten({"command": outcome.command, "machine": outcome.machine, "versions": outcome.versions})
