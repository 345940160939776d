"""A signal during an evaluation is served at once, and the evaluation is repeated when the run is resumed."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlm_jax.run.records import read_records
from mlm_jax.run.trainer import train
from mlm_jax.step import evaluation
from mlm_jax.step.evaluation import evaluate_rows
from tests.jobs import JOIN, Job, wide_config
from tests.run_small import assert_same_end, config_of, learned, write_config


@pytest.mark.slow
@pytest.mark.parametrize("at", [4, 8])
def test_a_stopped_evaluation_is_repeated_by_the_next_start(
    one_device: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Once in the middle of a run, and once after its last step. The signal comes at the second of eight batches."""
    settings = {"num_steps": 8, "eval_every": 4, "checkpoint_every": 3, "batch_size": 4}
    whole, run = config_of(tmp_path / "whole", **settings), config_of(tmp_path / "run", **settings)
    train(whole)
    batches: list[int] = []
    stopped_at = at

    def signal_meanwhile(program: Any, params: Any, rows: Any, limit: Any, watch: Callable[..., Any]) -> Any:
        batches.append(0)

        def sending(sums: Iterator[Any]) -> Iterator[Any]:
            for batch in sums:
                batches[-1] += 1
                if batches[-1] == 2 and len(batches) == stopped_at // 4:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch

        return evaluate_rows(program, params, rows, limit, lambda sums: watch(sending(sums)))

    monkeypatch.setattr(evaluation, "evaluate_rows", signal_meanwhile)
    result = train(run)
    assert (result.step, result.finished) == (at, False)
    assert batches[-1] == 2
    assert (tmp_path / "run" / "checkpoints" / str(at)).is_dir()
    assert [record["step"] for record in read_records(tmp_path / "run" / "eval.jsonl")] == [4][: at // 4 - 1]
    batches.clear()
    stopped_at = 0
    result = train(run)
    assert (result.step, result.finished) == (8, True)
    assert len(batches) == (2 if at == 4 else 1)
    assert batches[0] > 4
    assert_same_end(tmp_path / "run", tmp_path / "whole")
    batches.clear()
    train(run)
    assert batches == []


SIGNAL_IN_THE_FIRST_EVALUATION = f"""{JOIN}
from mlm_jax.run.trainer import train
from mlm_jax.step import evaluation
evaluate = evaluation.evaluate_rows
seen = 0
def signal_meanwhile(program, params, rows, limit, watch):
    def sending(sums):
        global seen
        for batch in sums:
            seen += 1
            if seen == 2 and config.distributed.process_id == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch
    return evaluate(program, params, rows, limit, lambda sums: watch(sending(sums)))
evaluation.evaluate_rows = signal_meanwhile
result = train(config)
print("STOPPED", result.step, result.finished, seen, file=sys.stderr)
"""


@pytest.mark.slow
def test_a_signal_to_one_process_stops_the_evaluation_in_all(tmp_path: Path) -> None:
    config = write_config(wide_config(tmp_path / "run", batch_size=2, num_steps=6))
    ended = Job(tmp_path, 2, 1, ["-c", SIGNAL_IN_THE_FIRST_EVALUATION, config], timeout_seconds=60).ended()
    assert [end.code for end in ended] == [0, 0], ended
    told = [end.stderr.partition("STOPPED ")[2].split() for end in ended]
    assert told[0] == told[1]
    step, finished, batches = told[0]
    assert (step, finished) == ("6", "False")
    assert int(batches) <= 5
    assert learned(tmp_path / "run" / "eval.jsonl") == []
