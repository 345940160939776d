"""How figures, settings and circumstances are written, the same in all files of a report."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from mlm_jax.config.settings import flatten
from mlm_jax.report.results import TrialResult
from mlm_jax.report.state import RunState, SweepState

COSTS_NOTE = (
    "Seconds are wall time of the start that ended a run, with compilation and evaluations; tokens/s those of the "
    "steps alone."
)


def shown(figure: float | None, form: str) -> str:
    """The figure by a format specification, as in `.2%`; a dash for None."""
    return "–" if figure is None else format(figure, form)


def shown_count(count: float | None) -> str:
    """Three digits with the prefix of a power of a thousand, as in `4.10 M`; a dash for None."""
    if count is None:
        return "–"
    prefixes, power = ("", " k", " M", " G", " T"), 0
    while count >= 999.5 and power < len(prefixes) - 1:
        count, power = count / 1000, power + 1
    decimals = 0 if not power or count >= 99.95 else 1 if count >= 9.995 else 2
    return f"{count:.{decimals}f}{prefixes[power]}"


def shown_loss(result: TrialResult) -> str:
    """Mean and standard deviation."""
    if result.loss.mean is None:
        return "–"
    spread = "" if result.loss.deviation is None else f" ± {result.loss.deviation:.4f}"
    return f"{result.loss.mean:.4f}{spread}"


def shown_setting(value: Any) -> str:
    """A setting as JSON writes it, strings without quotes."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def shown_changes(result: TrialResult) -> dict[str, str]:
    """The settings in which the trial differs from the baseline, with its values."""
    return {name: shown_setting(value) for name, value in result.changes.items()}


def count_statuses(runs: Sequence[RunState]) -> str:
    """As in `8 of 9 runs finished, 1 failed`."""
    counts = Counter[str](run.status for run in runs)
    words = {"failed": "failed", "started": "under way or killed", "not started": "not started"}
    others = [f"{counts[status]} {said}" for status, said in words.items() if counts[status]]
    return ", ".join([f"{counts['finished']} of {len(runs)} runs finished", *others])


def notes_of(sweep: SweepState) -> list[str]:
    """How the results table is to be read, a sentence or two each, without markup."""
    notes = [
        "Evaluation loss: the last evaluation at the last step of each run that finished, lower is better; mean ± "
        "standard deviation over the seeds. Perplexity is exp of the mean loss.",
        f"Difference: to {sweep.baseline}, same seed with same seed, with the paired 95 % t interval of its mean, "
        "which speaks of training again with other seeds and evaluating on the same text. Where it covers zero, no "
        "difference was seen, which is not to say that there is none.",
    ]
    if len(sweep.trials) > 2:
        notes.append(
            f"Each interval is for one comparison alone: {len(sweep.trials) - 1} trials are compared with one "
            "baseline, and nothing is corrected for that."
        )
    return notes


def circumstances(runs: Sequence[RunState]) -> list[tuple[str, list[tuple[str, str]]]]:
    """What outcomes say of command, machine and versions: each with its values, and if they are several with how many
    runs have it, as in `2 runs`."""
    told = [circumstances_of(run) for run in runs]
    found = []
    for name in dict.fromkeys(name for run in told for name in run):
        counts = Counter(str(run[name]) for run in told if name in run)
        several = len(counts) > 1
        values = [
            (value, f"{count} {'run' if count == 1 else 'runs'}" if several else "")
            for value, count in counts.items()
        ]
        found.append((name.partition(".")[2] or name, values))
    return found


def circumstances_of(run: RunState) -> dict[str, Any]:
    """`command`, `machine.…` and `versions.…` of a run that has ended."""
    if run.outcome is None:
        return {}
    told = {"command": run.outcome.command, "machine": run.outcome.machine, "versions": run.outcome.versions}
    return flatten(told)
