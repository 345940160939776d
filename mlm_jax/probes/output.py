"""Writes the report of a probe as a table, files and a bar chart."""

from dataclasses import asdict
from pathlib import Path

from mlm_jax.files.atomic import write_atomically
from mlm_jax.files.json_files import json_text
from mlm_jax.probes.probes import Estimate, ProbeReport
from mlm_jax.run.plots import plot_estimates

# Enough for BLiMP's 67 paradigms, in a tall chart.
_MAX_BARS = 80


def table(report: ProbeReport) -> str:
    """Returns the estimates as aligned lines, followed by the verdict."""
    width = max(len(estimate.name) for estimate in report.estimates)
    head = f"{report.title}: {report.unit}"
    lines = [
        f"{estimate.name:<{width}}  {_number(report, estimate.value):>8}  {_interval(report, estimate):<20}  "
        f"n = {estimate.count:,}"
        for estimate in report.estimates
    ]
    return "\n".join([head, "", *lines, "", report.verdict])


def write_report(folder: Path, report: ProbeReport) -> None:
    """Writes probe.json (everything), probe.tsv (the estimates) and probe.png (a bar chart) into `folder`.

    The chart shows at most 80 estimates: the first and those farthest from neutral. If some are omitted, its title
    states this.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = json_text(asdict(report), indent=1, ensure_ascii=False)
    write_atomically(folder / "probe.json", f"{content}\n".encode())
    rows = [
        "\t".join([e.name, *("" if x is None else repr(x) for x in (e.value, e.low, e.high)), str(e.count)])
        for e in report.estimates
    ]
    lines = ["name\tvalue\tlow\thigh\tcount", *rows]
    write_atomically(folder / "probe.tsv", "".join(f"{line}\n" for line in lines).encode())
    shown, title = report.estimates, report.title
    if len(shown) > _MAX_BARS:
        far = sorted(range(1, len(shown)), key=lambda index: -abs(shown[index].value - report.neutral))
        title += f": {_MAX_BARS} of {len(shown):,} estimates, those farthest from neutral"
        shown = [shown[0], *(shown[index] for index in sorted(far[: _MAX_BARS - 1]))]
    bars = [(e.name, e.value, e.low, e.high) for e in shown]
    plot_estimates(folder / "probe.png", title, report.unit, bars, report.neutral)


def _number(report: ProbeReport, value: float) -> str:
    return f"{value:.1%}" if report.neutral else f"{value:+.3f}"


def _interval(report: ProbeReport, estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f"[{_number(report, estimate.low)}, {_number(report, estimate.high)}]"
