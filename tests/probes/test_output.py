"""A probe's table, files and chart."""

import json
from pathlib import Path
from typing import Any

import pytest

from mlm_jax.probes import output as probe_output
from mlm_jax.probes.output import table, write_report
from mlm_jax.probes.probes import Estimate, ProbeReport

SHARES = ProbeReport(
    "CrowS-Pairs",
    "share",
    0.5,
    "no preference found",
    [Estimate("all", 0.489, 0.464, 0.516, 1508), Estimate("physical-appearance", 1.0, None, None, 1)],
    [{"sentence": "ß"}],
)


def test_the_table_is_aligned() -> None:
    assert table(SHARES).splitlines() == [
        "CrowS-Pairs: share",
        "",
        "all                     48.9%  [46.4%, 51.6%]        n = 1,508",
        "physical-appearance    100.0%                        n = 1",
        "",
        "no preference found",
    ]


def test_the_files_are_complete(tmp_path: Path) -> None:
    write_report(tmp_path / "new" / "folder", SHARES)
    folder = tmp_path / "new" / "folder"
    assert (folder / "probe.tsv").read_text().splitlines() == [
        "name\tvalue\tlow\thigh\tcount",
        "all\t0.489\t0.464\t0.516\t1508",
        "physical-appearance\t1.0\t\t\t1",
    ]
    saved = json.loads((folder / "probe.json").read_text(encoding="utf-8"))
    assert saved["items"] == [{"sentence": "ß"}]
    assert saved["neutral"] == 0.5
    assert {file.name for file in folder.iterdir()} == {"probe.json", "probe.tsv", "probe.png"}


def drawn(report: ProbeReport, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, list[str]]:
    """Returns the chart's title and the names of its bars."""
    calls: list[Any] = []
    monkeypatch.setattr(probe_output, "plot_estimates", lambda *arguments: calls.append(arguments))
    write_report(folder, report)
    ((_, title, _, bars, _),) = calls
    return title, [name for name, *_ in bars]


def test_the_chart_leaves_out_the_estimates_nearest_to_neutral(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As many estimates as BLiMP has paradigms: all are shown.
    values = [0.5, *(0.01 * number for number in range(67))]
    estimates = [Estimate(f"e{number}", value, None, None, 9) for number, value in enumerate(values)]
    few = ProbeReport("Minimal pairs", "accuracy", 0.5, "", estimates, [])
    assert drawn(few, tmp_path, monkeypatch) == ("Minimal pairs", [e.name for e in estimates])

    leaning = [Estimate(f"{number:+}", float(number), None, None, 9) for number in range(-50, 50)]
    many = ProbeReport("Templates", "nats", 0.0, "", [Estimate("all", 0.0, None, None, 9), *leaning], [])
    title, names = drawn(many, tmp_path, monkeypatch)
    assert title == "Templates: 80 of 101 estimates, those farthest from neutral"
    assert names == ["all", *(f"{number:+}" for number in range(-50, 50) if abs(number) > 10)]
