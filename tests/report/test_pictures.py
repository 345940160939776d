from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from mlm_jax.report.palette import COLORS, styles_of
from mlm_jax.report.pictures import differences_picture, losses_picture
from mlm_jax.report.results import results_of
from mlm_jax.report.state import SweepState, read_sweep
from tests.report.sweeps import LOSSES, write_plan, write_sweep

BLUE, ORANGE, VERMILLION, GREY = COLORS[0], COLORS[1], COLORS[3], "#6B7280"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> SweepState:
    losses = LOSSES | {"worse": {0: 2.50, 1: 2.55, 2: 2.53}}
    return read_sweep(write_sweep(tmp_path_factory.mktemp("sweep"), losses))


def pixels(picture: bytes | None, color: str) -> np.ndarray:
    """[pixels, 2] of (row, column) drawn in exactly this color."""
    assert picture is not None
    image = np.rint(imread(BytesIO(picture))[..., :3] * 255).astype(int)
    wanted = [int(color[place : place + 2], 16) for place in (1, 3, 5)]
    return np.argwhere((image == wanted).all(axis=-1))


def test_each_trial_has_a_falling_line_in_both_panels(sweep: SweepState) -> None:
    picture = losses_picture(sweep)
    for color in (BLUE, ORANGE, COLORS[2]):
        line = pixels(picture, color)
        # 11 inches at 120 dots: the left panel ends before column 560, the right one before the legend.
        left, right = line[line[:, 1] < 560], line[(line[:, 1] > 600) & (line[:, 1] < 1000)]
        assert len(left) > 300
        assert len(right) > 300
        assert left[left[:, 1].argmin()][0] < left[left[:, 1].argmax()][0] - 200


def test_differences_are_colored_by_what_may_be_claimed(sweep: SweepState) -> None:
    picture = differences_picture(sweep, results_of(sweep))
    lower, unclear, higher = (pixels(picture, color) for color in (BLUE, GREY, VERMILLION))
    # From top to bottom in the order of the trials, lower losses to the left.
    assert lower[:, 0].max() < unclear[:, 0].min()
    assert unclear[:, 0].max() < higher[:, 0].min()
    assert lower[:, 1].mean() < unclear[:, 1].mean() < higher[:, 1].mean()
    # The interval of 0.2 nats is four times as wide as those of 0.05.
    assert np.ptp(unclear[:, 1]) > 2 * np.ptp(lower[:, 1])


def test_nothing_to_draw_is_no_picture(tmp_path: Path) -> None:
    write_plan(tmp_path, ["rate_15", "rate_30"], [0])
    nothing = read_sweep(tmp_path)
    assert losses_picture(nothing) is None
    assert differences_picture(nothing, results_of(nothing)) is None


def test_a_sweep_of_failed_runs_is_drawn_as_far_as_it_came(tmp_path: Path) -> None:
    failed = read_sweep(write_sweep(tmp_path, {"rate_15": {0: None}, "rate_30": {0: None}}))
    assert len(pixels(losses_picture(failed), BLUE)) > 300
    assert differences_picture(failed, results_of(failed)) is None


def test_two_dozen_trials_look_different() -> None:
    names = [str(number) for number in range(24)]
    styles = styles_of(names, "3", "black")
    assert styles[3] == ("black", ())
    assert len(set(styles)) == 24
