from pathlib import Path

import pytest

from mlm_jax.report.state import read_sweep
from mlm_jax.report.wording import circumstances, count_statuses, notes_of, shown, shown_count, shown_setting
from tests.report.sweeps import write_outcome, write_plan, write_sweep


def test_no_figure_is_a_dash() -> None:
    assert (shown(0.5, ".2%"), shown(0.0, ".2f"), shown(12345.6, ",.0f")) == ("50.00%", "0.00", "12,346")
    assert shown(None, ".2%") == "–"


def test_statuses_are_counted(tmp_path: Path) -> None:
    sweep = read_sweep(write_sweep(tmp_path, {"rate_15": {0: 2.1, 1: None}, "rate_30": {0: 2.0}}))
    assert count_statuses(sweep.runs) == "2 of 4 runs finished, 1 failed, 1 not started"
    assert count_statuses(sweep.runs[:1]) == "1 of 1 runs finished"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "–"),
        (0, "0"),
        (999, "999"),
        (999.6, "1.00 k"),
        (12_345, "12.3 k"),
        (123_456, "123 k"),
        (999_600, "1.00 M"),
        (4_096_000, "4.10 M"),
        (2.5e9, "2.50 G"),
        (3e16, "30000 T"),
    ],
)
def test_counts_have_three_digits(count: float | None, text: str) -> None:
    assert shown_count(count) == text


@pytest.mark.parametrize(
    ("value", "text"), [("lamb", "lamb"), (None, "null"), (True, "true"), (1e-4, "0.0001"), (["a"], '["a"]')]
)
def test_settings_are_shown_as_json(value: object, text: str) -> None:
    assert shown_setting(value) == text


def test_several_comparisons_are_told_to_be_uncorrected(tmp_path: Path) -> None:
    write_plan(tmp_path, ["rate_15", "rate_30"], [0])
    assert "correction" not in " ".join(notes_of(read_sweep(tmp_path)))
    write_plan(tmp_path, ["rate_15", "rate_30", "rate_50"], [0])
    assert "2 trials are compared with one baseline, without a correction" in " ".join(
        notes_of(read_sweep(tmp_path))
    )


def test_circumstances_that_are_not_the_same_say_of_how_many_runs_they_are(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, {"rate_15": {0: 2.1, 1: 2.2}, "rate_30": {0: 2.0}})
    write_outcome(folder / "rate_30" / "seed_0", 1000, machine={"device": "TPU v5e", "cores": 2})
    told = dict(circumstances(read_sweep(folder).runs))
    assert told["device"] == [("cpu", "2 runs"), ("TPU v5e", "1 run")]
    assert told["cores"] == [("2", "")]
