import numpy as np
import pytest

from mlm_jax.report.curves import Curve, curve_of, group_medians, stack_seeds, thin
from mlm_jax.report.state import RunState
from tests.report.sweeps import evaluation_record, step_record


def run_of(
    losses: dict[int, float | None], evaluations: dict[int, float | None], tokens: int = 100
) -> RunState:
    return RunState(
        trial="trial",
        seed=0,
        outcome=None,
        config={},
        training=[step_record(step, loss, tokens) for step, loss in losses.items()],
        evaluations=[evaluation_record(step, loss) for step, loss in evaluations.items()],
    )


def line(steps: list[float], losses: list[float]) -> Curve:
    return Curve(np.array(steps, float), 100 * np.array(steps, float), np.array(losses, float))


def test_a_run_has_two_curves_over_steps_and_tokens() -> None:
    run = run_of({10: 5.0, 20: None, 30: 4.0}, {15: 4.5, 30: None})
    training, evaluation = curve_of(run, "training"), curve_of(run, "evaluation")
    assert training.steps.tolist() == [10, 30]
    assert training.losses.tolist() == [5.0, 4.0]
    assert training.tokens.tolist() == [1000, 3000]
    assert (evaluation.steps.tolist(), evaluation.tokens.tolist()) == ([15], [1500])
    assert len(curve_of(run_of({}, {}), "training").steps) == 0


def test_the_mean_is_over_the_steps_that_all_have() -> None:
    curves = [line([10, 20, 30], [5, 4, 3]), line([10, 30, 40], [7, 5, 1]), line([], [])]
    mean, losses = stack_seeds(curves)
    assert mean.steps.tolist() == [10, 30]
    assert mean.losses.tolist() == [6, 4]
    assert losses.tolist() == [[5, 3], [7, 5]]
    empty, losses = stack_seeds([line([], [])])
    assert (len(empty.steps), losses.shape) == (0, (0, 0))


@pytest.mark.parametrize("most", [3, 50, 500])
def test_a_thinned_curve_has_points_of_its_own_from_end_to_end(most: int) -> None:
    random = np.random.default_rng(0)
    curve = line(list(range(1, 10_001)), list(random.normal(3, 0.1, 10_000)))
    thinned = thin(curve, most)
    assert len(thinned.steps) == most
    assert (thinned.steps[0], thinned.steps[-1]) == (1, 10_000)
    assert (np.diff(thinned.steps) > 0).all()
    indices = thinned.steps.astype(int) - 1
    assert (curve.losses[indices] == thinned.losses).all()
    assert (curve.tokens[indices] == thinned.tokens).all()


def test_thinning_keeps_a_spike_and_a_short_curve() -> None:
    losses = np.linspace(9, 2, 5_000)
    losses[3_217] = 30.0
    assert thin(line(list(range(5_000)), list(losses)), 100).losses.max() == 30.0
    short = line([1, 2, 3, 4], [4, 3, 2, 1])
    assert thin(short, 4) is short


def test_medians_of_groups_ignore_spikes() -> None:
    curve = line(list(range(1, 22)), [float(step) for step in range(1, 22)])
    curve.losses[10] = 1e6
    medians, length = group_medians(curve, 4)
    # Groups of five, counted from the end: the first point is in none.
    assert length == 5
    assert medians.steps.tolist() == [4, 9, 14, 19]
    assert medians.losses.tolist() == [4, 9, 14, 19]
    assert group_medians(curve, 11) == (curve, 1)
