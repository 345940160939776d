"""Evaluations that end when a signal stops the run, because they may take longer than a scheduler's grace period."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp

from mlm_jax.data.batches import Rows
from mlm_jax.model.loss import LossSums
from mlm_jax.run.metrics import OneBehind
from mlm_jax.run.reporting import Reporter, announced_if_slow, say
from mlm_jax.run.signals import StopRequest
from mlm_jax.step import evaluation
from mlm_jax.step.evaluation import Evaluation
from mlm_jax.step.program import Program
from mlm_jax.step.update import TrainState


def run_stops(reporter: Reporter, stop: StopRequest) -> bool:
    """Returns True if the run stops now. Several processes stop one step later, when all know of the signal."""
    return reporter.stop_voted if jax.process_count() > 1 else stop.name is not None


def evaluate_unless_stopped(
    program: Program,
    state: TrainState,
    step: int,
    rows: Rows,
    limit: int | None,
    reporter: Reporter,
    stop: StopRequest,
) -> Evaluation | None:
    """Evaluates and reports `state`, or returns None if a signal stops the evaluation, in all processes."""

    def until_stopped(sums: Iterator[LossSums]) -> Iterator[LossSums]:
        behind = OneBehind()
        for number, batch_sums in enumerate(sums):
            yield batch_sums
            # Waits for the batch before, so that few batches are left to compute when the run stops.
            votes = jnp.sum(program.stop_votes(stop.name is not None))
            held = behind.push(number, votes if jax.process_count() > 1 else batch_sums.weight)
            if jax.process_count() > 1:
                reporter.stop_voted |= held is not None and bool(held[1])
            if run_stops(reporter, stop):
                raise _StoppedError

    try:
        with reporter.paused(), announced_if_slow(f"step {step:,}: evaluating"):
            found = evaluation.evaluate_rows(program, state.params, rows, limit, until_stopped)
    except _StoppedError:
        say(f"step {step:,}: evaluation stopped; it is repeated when the run is resumed")
        return None
    reporter.evaluation(step, found)
    return found


class _StoppedError(Exception):
    """A signal stops an evaluation."""
