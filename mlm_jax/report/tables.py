"""report.md, report.csv and runs.csv. Reproducible results are kept separate from times."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mlm_jax.report.results import TrialCost, TrialResult, costs_of, results_of
from mlm_jax.report.state import RunState, SweepState
from mlm_jax.report.wording import (
    COSTS_NOTE,
    circumstances,
    circumstances_of,
    count_statuses,
    notes_of,
    shown,
    shown_changes,
    shown_count,
    shown_loss,
    shown_setting,
)

RESULTS_HEADING = "## Results"

# Keys of metrics.jsonl that depend on the machine rather than on the model.
_TIMED = {"tokens_per_second", "real_tokens_per_second", "sequences_per_second", "step_seconds", "mfu"}


def results_table(results: Sequence[TrialResult]) -> str:
    """Returns the comparison of trials in Markdown, without times, so that a rerun reproduces the text."""
    head = ["trial", "evaluation loss (nats)", "seeds", "difference (nats)", "95% interval", "verdict"]
    head += ["pairs", "accuracy", "perplexity", "real tokens", "changes"]
    rows = [
        [
            f"`{result.trial.name}`",
            shown_loss(result),
            str(result.loss.count),
            result.difference.shown_mean(),
            result.difference.interval(),
            result.verdict,
            "–" if result.is_baseline else str(len(result.difference.values)),
            shown(result.accuracy.mean, ".2%"),
            shown(result.perplexity, ".2f"),
            shown_count(result.real_tokens),
            "<br>".join(f"`{name} = {value}`" for name, value in shown_changes(result).items()) or "–",
        ]
        for result in results
    ]
    return _markdown_table(head, rows)


def settings_table(sweep: SweepState) -> str:
    """Returns the settings that differ between trials, in Markdown."""
    names = sweep.varied_settings
    rows = [
        [f"`{trial.name}`", *(shown_setting(trial.settings.get(name)) for name in names)]
        for trial in sweep.trials
    ]
    return _markdown_table(["trial", *(f"`{name}`" for name in names)], rows)


def costs_table(costs: Sequence[TrialCost]) -> str:
    """Returns the costs of each trial in Markdown; they vary between reruns."""
    rows = [
        [
            f"`{cost.trial.name}`",
            str(cost.count),
            shown(cost.seconds, ",.0f"),
            shown(cost.tokens_per_second, ",.0f"),
        ]
        for cost in costs
    ]
    return _markdown_table(["trial", "finished runs", "seconds per run", "real tokens/s"], rows)


def markdown(sweep: SweepState, pictures: Mapping[str, str]) -> str:
    """Returns report.md. `pictures` are captions by file name."""
    left_out = [(run, run.why_left_out) for run in sweep.runs if run.why_left_out is not None]
    seeds = ", ".join(map(str, sweep.seeds))
    parts = [
        f"# {_text(sweep.name)}",
        _text(sweep.description),
        f"{len(sweep.trials)} trials of `{sweep.source}`, each with seeds {seeds}. {count_statuses(sweep.runs)}.",
        RESULTS_HEADING,
        results_table(results_of(sweep)),
        *map(_text, notes_of(sweep)),
        "## Settings that differ",
        settings_table(sweep) if sweep.varied_settings else "None.",
        "## Runs without a result",
        "\n".join(f"- `{run.name}`: {_text(str(why))}" for run, why in left_out) or "None.",
        "## Curves",
        "\n\n".join(f"![{caption}]({name})" for name, caption in pictures.items()) or "No evaluation yet.",
        "## Time, machine and versions",
        costs_table(costs_of(sweep)),
        COSTS_NOTE,
        _circumstances_list(sweep),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def results_csv(sweep: SweepState) -> str:
    """Returns report.csv, one line per run: its last metrics with all digits. A rerun reproduces the text."""
    rows = []
    for run, settings in _runs_with_settings(sweep):
        row: dict[str, Any] = {"trial": run.trial, "seed": run.seed, "status": run.status, "step": run.step}
        row["left_out"] = run.why_left_out
        for kind, records in (("evaluation", run.evaluations), ("training", run.training)):
            last = records[-1] if records else {}
            row.update({f"{kind}.{key}": value for key, value in last.items() if key not in _TIMED})
        rows.append(row | settings)
    return _csv(rows)


def runs_csv(sweep: SweepState) -> str:
    """Returns runs.csv, one line per run: costs, machine and versions, which vary between reruns."""
    rows = []
    for run in sweep.runs:
        row: dict[str, Any] = {"trial": run.trial, "seed": run.seed, "status": run.status}
        row |= {"real_tokens": run.real_tokens, "seconds": run.outcome.seconds if run.outcome else None}
        row["real_tokens_per_second"] = run.real_tokens / run.training_seconds if run.training else None
        rows.append(row | circumstances_of(run))
    return _csv(rows)


def _runs_with_settings(sweep: SweepState) -> Iterable[tuple[RunState, dict[str, str]]]:
    for trial in sweep.trials:
        settings = {name: shown_setting(trial.settings.get(name)) for name in sweep.varied_settings}
        for run in trial.runs:
            yield run, settings


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _circumstances_list(sweep: SweepState) -> str:
    return "\n".join(
        f"- {name}: {'; '.join(f'`{value}`' + (f' ({count})' if count else '') for value, count in values)}"
        for name, values in circumstances(sweep.runs)
    )


def _markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def escaped(cell: str) -> str:
        return cell.replace("|", "\\|").replace("\n", " ")

    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(escaped, line))} |" for line in lines)


def _text(text: str) -> str:
    """Escapes characters that Markdown would interpret as HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;")
