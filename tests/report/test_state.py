import json
from dataclasses import fields
from pathlib import Path

import pytest

from mlm_jax.errors import InputError
from mlm_jax.report.state import read_sweep
from mlm_jax.run.metrics import EvaluationRecord, StepRecord
from tests.report.sweeps import (
    LOSSES,
    evaluation_record,
    settings_of,
    step_record,
    write_lines,
    write_outcome,
    write_plan,
    write_sweep,
)


def one_run(folder: Path) -> Path:
    """A plan of one trial and seed, and the run's folder."""
    write_plan(folder, ["rate_15"], [0])
    run = folder / "rate_15" / "seed_0"
    run.mkdir(parents=True)
    return run


def test_records_are_those_that_a_run_writes() -> None:
    assert step_record(1, 2.0).keys() <= {field.name for field in fields(StepRecord)}
    assert evaluation_record(1, 2.0).keys() <= {field.name for field in fields(EvaluationRecord)}


def test_trials_and_seeds_in_the_order_of_the_plan(tmp_path: Path) -> None:
    sweep = read_sweep(write_sweep(tmp_path, LOSSES, seeds=[2, 0, 1]))
    assert [trial.name for trial in sweep.trials] == ["rate_15", "rate_30", "rate_50"]
    assert [run.name for run in sweep.trials[1].runs] == [f"rate_30/seed_{seed}" for seed in (2, 0, 1)]
    assert sweep.trials[1].results("mlm_loss") == pytest.approx({2: 2.06, 0: 2.05, 1: 2.10})
    assert all(run.status == "finished" and run.why_left_out is None for run in sweep.runs)


def test_what_differs_is_what_is_not_the_same_in_all_trials(tmp_path: Path) -> None:
    names = ["a", "b", "c", "d"]
    plan = {name: settings_of(number) for number, name in enumerate(names)}
    # Where a run is kept and its seed say nothing of a trial.
    plan["c"] |= {"output_dir": "elsewhere", "seed": 7}
    plan["d"]["optimizer"]["freeze"] = ["encoder/*"]
    write_plan(tmp_path, names, [0], baseline="b", trials=plan)
    sweep = read_sweep(tmp_path)
    assert sweep.varied_settings == [
        "masking.mask_selection_rate",
        "optimizer.learning_rate",
        "optimizer.freeze",
    ]
    assert sweep.changes(sweep.trials[1]) == {}
    assert sweep.changes(sweep.trials[2]) == {"masking.mask_selection_rate": 0.5}
    assert sweep.changes(sweep.trials[3]) == {
        "masking.mask_selection_rate": 0.15,
        "optimizer.learning_rate": 2e-3,
        "optimizer.freeze": ["encoder/*"],
    }


def test_a_setting_that_one_trial_alone_has_differs(tmp_path: Path) -> None:
    plan = {"a": settings_of(0), "b": settings_of(0) | {"span": None}}
    write_plan(tmp_path, ["a", "b"], [0], trials=plan)
    assert read_sweep(tmp_path).varied_settings == ["span"]


def test_runs_without_an_outcome_are_not_started_or_not_finished(tmp_path: Path) -> None:
    run = one_run(tmp_path)
    (read,) = read_sweep(tmp_path).runs
    assert (read.status, read.step, read.why_left_out) == ("not started", 0, "not started")
    assert read.config["masking"] == settings_of(0)["masking"]
    write_lines(run / "metrics.jsonl", [step_record(10, 5.0), step_record(1200, 4.0)])
    write_lines(run / "eval.jsonl", [evaluation_record(1000, 4.0)])
    (read,) = read_sweep(tmp_path).runs
    assert (read.status, read.step) == ("started", 1200)
    assert read.why_left_out == "not finished, at step 1,200"
    assert read.result is None


def test_a_failed_run_has_no_result_though_it_was_evaluated(tmp_path: Path) -> None:
    run = one_run(tmp_path)
    write_lines(run / "eval.jsonl", [evaluation_record(500, 4.0)])
    write_outcome(run, 500, "step 500:\n no space left")
    (read,) = read_sweep(tmp_path).runs
    assert read.result is None
    assert read.why_left_out == "failed: step 500: no space left"


def test_the_result_is_the_last_evaluation_at_the_last_step(tmp_path: Path) -> None:
    run = one_run(tmp_path)
    write_outcome(run, 1000)
    write_lines(run / "eval.jsonl", [evaluation_record(500, 4.0)])
    (read,) = read_sweep(tmp_path).runs
    assert read.result is None
    assert read.why_left_out == "finished without an evaluation at its last step, 1,000"
    write_lines(
        run / "eval.jsonl", [evaluation_record(500, 1.0), *(evaluation_record(1000, x) for x in (3.0, 2.0))]
    )
    (read,) = read_sweep(tmp_path).runs
    assert read.result == evaluation_record(1000, 2.0)
    write_lines(run / "eval.jsonl", [evaluation_record(500, 1.0), evaluation_record(1000, None)])
    (read,) = read_sweep(tmp_path).runs
    assert read.result is None
    assert read.why_left_out == "finished with a non-finite evaluation loss"


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path)
    whole = read_sweep(folder).runs[0]
    metrics = folder / "rate_15" / "seed_0" / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"step": 1010, "epoch": 2.')
    assert read_sweep(folder).runs[0].training == whole.training


def test_real_tokens_are_counted_from_rates(tmp_path: Path) -> None:
    run = one_run(tmp_path)
    # The first window has 10 steps of 201 tokens, the second 5 of 97.
    write_lines(run / "metrics.jsonl", [step_record(10, 5.0, 201), step_record(15, 5.0, 97)])
    (read,) = read_sweep(tmp_path).runs
    assert read.token_counts.tolist() == [[0, 10, 15], [0, 2010, 2495]]
    assert read.real_tokens == 2495
    assert read.training_seconds == pytest.approx(15 * 0.03)


def test_a_folder_without_a_plan_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not the folder of a sweep: no sweep\.json"):
        read_sweep(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"baseline": "rate_16"}, r"baseline = 'rate_16': must be one of rate_15, rate_30"),
        ({"seeds": []}, r"seeds = \[\]: must be integers, at least one"),
        ({"seeds": [0, "1"]}, r"seeds = \[0, '1'\]: must be integers"),
        ({"trials": [1], "data": {}}, r"trials = \[1\]: must be a JSON object"),
        ({"data": {"rate_15": {}}}, r"data: must have an entry for every trial"),
        ({"trials": {"rate_15": 3}}, r"trials: each trial must be a JSON object of settings"),
        ({"description": None}, r"description = None: must be a JSON string"),
    ],
)
def test_a_damaged_plan_is_named(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    write_plan(tmp_path, ["rate_15", "rate_30"], [0], **changes)
    with pytest.raises(InputError, match=rf"sweep\.json: {said}"):
        read_sweep(tmp_path)


@pytest.mark.parametrize("content", [b'{"name": "ma', b"[]", b"\xff\xfe"])
def test_a_plan_that_is_no_json_object_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "sweep.json").write_bytes(content)
    with pytest.raises(InputError, match=r"sweep\.json: (not valid JSON|must contain a JSON object)"):
        read_sweep(tmp_path)


@pytest.mark.parametrize(
    "outcome",
    [
        "{",
        "{}",
        json.dumps({"status": "done", "step": 1, "seconds": 2.0}),
        json.dumps({"status": "failed", "step": 1}),
    ],
)
def test_a_damaged_outcome_is_named(tmp_path: Path, outcome: str) -> None:
    (one_run(tmp_path) / "outcome.json").write_text(outcome)
    with pytest.raises(
        InputError,
        match=r"seed_0/outcome\.json: (not valid JSON|must contain the outcome of a run; delete it)",
    ):
        read_sweep(tmp_path)
