import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from mlm_jax.run.plots import plot_losses

TRAINING = (0x1F, 0x77, 0xB4)  # tab:blue
EVALUATION = (0xFF, 0x7F, 0x0E)  # tab:orange


def write_run(folder: Path, losses: list[float | None], evaluations: dict[int, float | None]) -> None:
    lines = [json.dumps({"step": step, "loss": loss}) for step, loss in enumerate(losses, start=1)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    lines = [json.dumps({"step": step, "mlm_loss": loss}) for step, loss in evaluations.items()]
    (folder / "eval.jsonl").write_text("\n".join(lines))


def pixels(picture: Path, color: tuple[int, int, int]) -> np.ndarray:
    """Returns the [pixels, 2] (row, column) of this exact color, outside the legend."""
    image = np.rint(imread(picture)[..., :3] * 255).astype(int)
    rows, columns = np.nonzero((image == color).all(axis=-1))
    return np.stack([rows, columns], axis=1)[(columns < 640) | (rows > 100)]


@pytest.mark.parametrize("points", [2, 30, 1_000, 20_000])
def test_both_curves_are_drawn_and_fall(tmp_path: Path, points: int) -> None:
    losses = [2 + 8 * 0.01 ** (i / points) for i in range(points)]
    write_run(tmp_path, losses, {points // 2 + 1: 3.0, points: 2.5})
    picture = plot_losses(tmp_path)
    assert picture == tmp_path / "loss.png"
    training = pixels(picture, TRAINING)
    assert len(training) > 20
    assert len(pixels(picture, EVALUATION)) > 20
    left, right = training[training[:, 1].argmin()], training[training[:, 1].argmax()]
    assert left[0] < right[0] - 200
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eval.jsonl", "loss.png", "metrics.jsonl"]


def test_a_single_point_is_visible(tmp_path: Path) -> None:
    write_run(tmp_path, [10.0], {})
    assert len(pixels(plot_losses(tmp_path), TRAINING)) > 5


def test_a_spike_does_not_flatten_the_curve(tmp_path: Path) -> None:
    losses: list[float | None] = [10 - 8 * i / 2000 for i in range(2000)]
    write_run(tmp_path, losses, {})
    without = pixels(plot_losses(tmp_path), TRAINING)
    losses[700], losses[701] = 1e6, None
    write_run(tmp_path, losses, {})
    with_spike = pixels(plot_losses(tmp_path), TRAINING)
    assert np.ptp(with_spike[:, 0]) == pytest.approx(np.ptp(without[:, 0]), abs=5)


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from mlm_jax.run.plots import plot_losses

plot_losses(Path(sys.argv[1]))  # so that matplotlib has written its caches
before = (Path(sys.argv[1]) / "loss.png").read_bytes()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
try:
    plot_losses(Path(sys.argv[1]))
except OSError:
    print((Path(sys.argv[1]) / "loss.png").read_bytes() == before)
"""


def test_a_picture_that_does_not_fit_keeps_the_previous_one(tmp_path: Path) -> None:
    write_run(tmp_path, [10.0, 9.0], {})
    said = subprocess.check_output([sys.executable, "-c", FULL_DISK, str(tmp_path)], text=True)
    assert said == "True\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eval.jsonl", "loss.png", "metrics.jsonl"]


def test_without_points_there_is_no_picture(tmp_path: Path) -> None:
    assert plot_losses(tmp_path) is None
    write_run(tmp_path, [None], {1: None})
    assert plot_losses(tmp_path) is None
    assert not (tmp_path / "loss.png").exists()


def test_importing_the_module_selects_no_backend() -> None:
    script = "import sys, mlm_jax.run.plots; print('matplotlib.pyplot' in sys.modules, 'jax' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).split()[0] == "False"
