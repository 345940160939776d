"""Evaluation metrics, in Python and as the script prints them, also if the loss is not a number."""

import json
import math
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlm_jax.step.evaluation import Evaluation, evaluate_rows
from mlm_jax.step.train_step import eval_step
from mlm_jax.use import evaluate as evaluation_of_models
from scripts import evaluate
from tests.small import SEP, batch_of, program_of


class SmallRows:
    """Sixteen rows of the small language."""

    num_rows = 16

    def read(self, row_numbers: np.ndarray) -> np.ndarray:
        return batch_of(0).token_ids[row_numbers]


def evaluation_of(scale: float) -> Evaluation:
    """Evaluates initial parameters times `scale`."""
    program = program_of()
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf * scale), program.initial_state().params)
    return evaluate_rows(program, params, SmallRows())


def test_metrics_are_the_sums_of_the_rows_over_their_weights() -> None:
    program = program_of()
    params = program.initial_state().params
    # The rows' numbers are their example ids, as in a data set.
    batch = batch_of(0)._replace(example_ids=np.arange(16, dtype=np.uint32))
    sums = jax.jit(partial(eval_step, program.setup))(params, batch)
    evaluation = evaluate_rows(program, params, SmallRows())
    assert evaluation.mlm_loss == pytest.approx(float(sums.loss) / float(sums.weight), rel=1e-6)
    assert evaluation.mlm_accuracy == pytest.approx(float(sums.correct) / float(sums.weight), rel=1e-6)
    assert evaluation.masked_tokens == sums.weight


def test_without_a_masked_token_there_is_no_loss() -> None:
    class RowsOfSpecialTokens(SmallRows):
        def read(self, row_numbers: np.ndarray) -> np.ndarray:
            return np.full((len(row_numbers), 24), SEP, np.int32)

    program = program_of()
    evaluation = evaluate_rows(program, program.initial_state().params, RowsOfSpecialTokens())
    assert evaluation.masked_tokens == 0
    assert all(map(math.isnan, (evaluation.mlm_loss, evaluation.mlm_accuracy, evaluation.perplexity)))
    assert not evaluation.mlm_loss < math.inf, "is never the best"


def test_perplexity_is_the_exponential_of_the_loss() -> None:
    evaluation = evaluation_of(1.0)
    assert evaluation.perplexity == pytest.approx(math.exp(evaluation.mlm_loss))
    assert evaluation.mlm_loss == pytest.approx(math.log(256), abs=0.5)


def test_a_nan_loss_is_null_in_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = evaluation_of(math.nan)
    assert math.isnan(evaluation.mlm_loss)
    assert math.isnan(evaluation.perplexity)
    monkeypatch.setattr(evaluation_of_models, "evaluate_model", lambda *_, **__: evaluation)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "run", "--data", "data"])
    evaluate.main()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    figures = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert (figures["mlm_loss"], figures["perplexity"]) == (None, None)
    assert figures["masked_tokens"] == evaluation.masked_tokens > 0
