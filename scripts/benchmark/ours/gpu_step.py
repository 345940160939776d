"""Contestant: our train step on batches that fill the GPU and are on it before timing starts."""

from itertools import cycle, islice
from typing import Any

import jax

from scripts.benchmark.contest import Round, Steps, serve
from scripts.benchmark.filling import filled_round
from scripts.benchmark.ours.step import begin_training, step_batches, step_program
from scripts.benchmark.step_work import BATCHES, StepWork


def prepare(settings: dict[str, Any]) -> tuple[Round, dict[str, Any]]:
    """Returns a round whose units are sequences; reports the number of `rows` per batch."""

    def begin(work: StepWork) -> Steps:
        program = step_program(work, work.masking)
        stored = islice(step_batches(work, settings["batches"]), BATCHES)
        return begin_training(program, cycle([program.put(batch) for batch in stored]))

    work_once, rows = filled_round(StepWork(**settings["work"]), begin)
    return work_once, {"version": f"jax {jax.__version__}", "rows": rows}


if __name__ == "__main__":
    serve(prepare)
