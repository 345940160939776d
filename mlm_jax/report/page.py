"""report.html: a single file that needs no network. Its template, style and script are next to this module."""

import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np

from mlm_jax.report.comparison import Difference
from mlm_jax.report.curves import LOSS_KEYS, Curve, Kind, curve_of, group_medians, stack_seeds, thin
from mlm_jax.report.palette import styles_of
from mlm_jax.report.results import TrialResult, costs_of, results_of
from mlm_jax.report.state import SweepState, Trial
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

MOST_POINTS = 500
"""Maximum number of points of a curve on the page; longer ones are thinned."""
NUM_GROUPS = 100
"""Number of groups of a trial's noisy training losses; its bold curve shows the median of each."""


@dataclass(frozen=True)
class _Cell:
    """A cell of a sortable table: the HTML to show, and the value to sort by; None sorts last."""

    shown: str
    value: str | float | None
    kind: str = ""


def page(sweep: SweepState) -> str:
    """Returns report.html.

    All text from the sweep is escaped: in HTML, and with `<` as a JSON escape in the data of the script, so that no
    name can end its element.
    """
    seeds = ", ".join(map(str, sweep.seeds))
    status = f"{len(sweep.trials)} trials of {sweep.source}, each with seeds {seeds}. "
    parts = {
        "name": html.escape(sweep.name),
        "description": html.escape(sweep.description),
        "status": html.escape(f"{status}{count_statuses(sweep.runs)}."),
        "results": _results(results_of(sweep)),
        "notes": "\n".join(f'<p class="note">{html.escape(note)}</p>' for note in notes_of(sweep)),
        "about_curves": f"Thin lines: single seeds; long curves are thinned to {MOST_POINTS} points that preserve "
        "their shape. Bold lines: the mean over the finished seeds; for the training loss, its medians over about "
        f"{NUM_GROUPS} groups of points.",
        "settings": _settings(sweep),
        "left_out": _left_out(sweep),
        "costs": f'{_costs(sweep)}\n<p class="note">{html.escape(COSTS_NOTE)}</p>',
        "circumstances": _circumstances(sweep),
        "configs": "\n".join(_config(sweep)),
        "data": _json_in_script(_data(sweep)),
        "style": _resource("page.css"),
        "script": _resource("page.js"),
    }
    # A single pass, so that inserted text is never searched for placeholders.
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], _resource("page.html"))


def _resource(name: str) -> str:
    return files("mlm_jax.report").joinpath(name).read_text(encoding="utf-8")


def _json_in_script(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _table(label: str, head: Sequence[str], rows: Sequence[Sequence[_Cell]], *, narrow: bool = False) -> str:
    """Returns a sortable table in a scrollable box; the first cell of a row is its header."""
    numeric = [any(cell.kind == "number" for cell in column) for column in zip(*rows, strict=True)]
    titles = "".join(
        f'<th scope="col" aria-sort="none"{_class("number" if is_number else "")}>'
        f'<button type="button">{title}</button></th>'
        for title, is_number in zip(head, numeric, strict=True)
    )
    lines = []
    for first, *others in rows:
        name = f'<th scope="row" data-value="{html.escape(str(first.value))}">{first.shown}</th>'
        lines.append(f"<tr>{name}{''.join(_td(cell) for cell in others)}</tr>")
    box = f'<div class="scroll{" narrow" if narrow else ""}" role="region" aria-label="{label}" tabindex="0">'
    return (
        f"{box}<table><thead><tr>{titles}</tr></thead><tbody>\n"
        + "\n".join(lines)
        + "\n</tbody></table></div>"
    )


def _td(cell: _Cell) -> str:
    value = "" if cell.value is None else html.escape(str(cell.value))
    return f'<td{_class(cell.kind)} data-value="{value}">{cell.shown}</td>'


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def _number(text: str, value: float | None) -> _Cell:
    return _Cell(html.escape(text), value, "number")


def _name(trial: Trial) -> _Cell:
    return _Cell(_breakable(trial.name), trial.name)


def _results(results: Sequence[TrialResult]) -> str:
    head = ["trial", "evaluation loss", "seeds", "difference", "verdict", "pairs"]
    head += ["accuracy", "perplexity", "real tokens", "changes"]
    differences = [result.difference for result in results]
    ends = [0.0, *(x for d in differences for x in (d.mean, d.low, d.high) if x is not None)]
    scale = (min(ends), max(ends))
    return _table("Results", head, [_result(result, scale) for result in results])


def _result(result: TrialResult, scale: tuple[float, float]) -> list[_Cell]:
    difference, accuracy, perplexity = result.difference, result.accuracy.mean, result.perplexity
    kind = "unclear"
    if difference.is_claim and difference.mean is not None:
        kind = "lower" if difference.mean < 0 else "higher"
    changes = shown_changes(result)
    listed = [f"<code>{_breakable(name)} = {html.escape(value)}</code>" for name, value in changes.items()]
    pairs = len(difference.values)
    return [
        _name(result.trial),
        _number(shown_loss(result), result.loss.mean),
        _number(str(result.loss.count), result.loss.count),
        _Cell(_difference(difference, kind, scale), difference.mean),
        _Cell(html.escape(result.verdict), result.verdict, f"verdict {kind}"),
        _number("–" if result.is_baseline else str(pairs), None if result.is_baseline else pairs),
        _number(shown(accuracy, ".2%"), accuracy),
        _number(shown(perplexity, ".2f"), perplexity),
        _number(shown_count(result.real_tokens), result.real_tokens),
        _Cell("".join(listed) or "–", str(changes), "changes"),
    ]


def _difference(difference: Difference, kind: str, scale: tuple[float, float]) -> str:
    """Returns the mean and its interval as text and as a drawing, with the same `scale` for all rows."""
    if difference.mean is None:
        return "–"
    low, high = scale

    def place(value: float) -> str:
        return f"{6 + 148 * (value - low) / ((high - low) or 1.0):.1f}"

    drawn = f'<line class="zero" x1="{place(0)}" x2="{place(0)}" y1="0" y2="18"/>'
    text = difference.shown_mean()
    if difference.low is not None and difference.high is not None:
        ends = f'x1="{place(difference.low)}" x2="{place(difference.high)}"'
        drawn += f'<line class="range" {ends} y1="9" y2="9"/>'
        text += f" ({difference.interval()})"
    drawn += f'<circle class="mean" cx="{place(difference.mean)}" cy="9" r="4"/>'
    return f'<svg class="interval {kind}" viewBox="0 0 160 18" aria-hidden="true">{drawn}</svg>{text}'


def _breakable(name: str) -> str:
    """Returns a name that may break after a dot or an underscore."""
    return re.sub(r"([._])", r"\1<wbr>", html.escape(name))


def _settings(sweep: SweepState) -> str:
    if not sweep.varied_settings:
        return "<p>None.</p>"
    rows = [
        [_name(trial), *(_setting(trial.settings.get(name)) for name in sweep.varied_settings)]
        for trial in sweep.trials
    ]
    head = ["trial", *(f"<code>{html.escape(name)}</code>" for name in sweep.varied_settings)]
    return _table("Settings that differ", head, rows, narrow=True)


def _setting(value: Any) -> _Cell:
    is_number = type(value) in (int, float)
    return _Cell(
        html.escape(shown_setting(value)),
        value if is_number else shown_setting(value),
        "number" if is_number else "",
    )


def _left_out(sweep: SweepState) -> str:
    items = [
        f'<li class="{"error" if run.status == "failed" else ""}"><code>{html.escape(run.name)}</code>: '
        f"{html.escape(str(run.why_left_out))}</li>"
        for run in sweep.runs
        if run.why_left_out is not None
    ]
    return "<ul>\n" + "\n".join(items) + "\n</ul>" if items else "<p>None.</p>"


def _costs(sweep: SweepState) -> str:
    rows = [
        [
            _name(cost.trial),
            _number(str(cost.count), cost.count),
            _number(shown(cost.seconds, ",.0f"), cost.seconds),
            _number(shown(cost.tokens_per_second, ",.0f"), cost.tokens_per_second),
        ]
        for cost in costs_of(sweep)
    ]
    return _table(
        "Time of each trial",
        ["trial", "finished runs", "seconds per run", "real tokens/s"],
        rows,
        narrow=True,
    )


def _circumstances(sweep: SweepState) -> str:
    lines = {
        name: "<br>".join(
            f"<code>{html.escape(value)}</code>" + (f" ({count})" if count else "") for value, count in values
        )
        for name, values in circumstances(sweep.runs)
    }
    return _list(lines)


def _list(lines: Mapping[str, str]) -> str:
    """Returns a definition list; the values are HTML."""
    items = "".join(f"<dt>{html.escape(name)}</dt><dd>{value}</dd>" for name, value in lines.items())
    return f"<dl>{items}</dl>" if items else ""


def _config(sweep: SweepState) -> Iterable[str]:
    for run in sweep.runs:
        config = html.escape(json.dumps(run.config, indent=2, ensure_ascii=False))
        summary = html.escape(f"{run.name} ({run.status})")
        details = {
            name: f"<code>{html.escape(str(value))}</code>" for name, value in circumstances_of(run).items()
        }
        yield f"<details><summary>{summary}</summary>{_list(details)}<pre>{config}</pre></details>"


def _data(sweep: SweepState) -> dict[str, Any]:
    """Returns the data that the script draws: the curves and the style of each trial."""
    styles = styles_of([trial.name for trial in sweep.trials], sweep.baseline, "currentColor")
    trials = []
    for trial, (color, dashes) in zip(sweep.trials, styles, strict=True):
        means = {kind: _mean(trial, kind) for kind in LOSS_KEYS}
        runs = [
            {"seed": run.seed, "status": run.status}
            | {kind: _points(curve_of(run, kind)) for kind in LOSS_KEYS}
            for run in trial.runs
        ]
        trials.append({"name": trial.name, "color": color, "dashes": dashes, "runs": runs, "mean": means})
    return {"baseline": sweep.baseline, "trials": trials}


def _mean(trial: Trial, kind: Kind) -> dict[str, Any]:
    """Returns the mean curve over the runs of a trial, with their seeds."""
    curves = {run.seed: curve_of(run, kind) for run in trial.curve_runs}
    mean, _ = stack_seeds(list(curves.values()))
    group_size = 1
    if kind == "training":
        mean, group_size = group_medians(mean, NUM_GROUPS)
    seeds = [seed for seed, curve in curves.items() if len(curve.steps)]
    return _points(mean) | {"seeds": seeds, "groupSize": group_size}


def _points(curve: Curve) -> dict[str, list[float]]:
    thinned = thin(curve, MOST_POINTS)
    return {
        "steps": thinned.steps.astype(int).tolist(),
        "tokens": np.rint(thinned.tokens).astype(int).tolist(),
        "losses": [round(loss, 6) for loss in thinned.losses.tolist()],
    }
