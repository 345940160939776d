"""The mean of checkpoints and models."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from mlm_jax.__main__ import run_command
from mlm_jax.errors import InputError
from mlm_jax.formats.model_folder import StoredModel, random_model, write_model_folder
from mlm_jax.store.averaging import average_models, last_checkpoints
from mlm_jax.store.loading import load_model
from mlm_jax.store.run_folder import read_config
from tests.run_small import tokenizer, uninterrupted


def write_models(folder: Path, **changes: Any) -> tuple[list[Path], list[StoredModel]]:
    """Writes three random models to folders; `changes` are those of the last one's config."""
    paths, models = [], []
    for seed in range(3):
        config = replace(read_config(uninterrupted()).model, **(changes if seed == 2 else {}))
        models.append(random_model(config, tokenizer(), seed))
        paths.append(folder / str(seed))
        write_model_folder(paths[-1], models[-1])
    return paths, models


def test_the_mean_has_the_given_weights(tmp_path: Path) -> None:
    paths, models = write_models(tmp_path, dropout_rate=0.3)
    for weights, shares in ((None, [1 / 3] * 3), ([1, 2, 5], [0.125, 0.25, 0.625])):
        found = average_models(paths, weights)
        assert found.config == models[0].config
        for mean, *own in zip(
            jax.tree.leaves(found.params), *(jax.tree.leaves(m.params) for m in models), strict=True
        ):
            expected = sum(
                share * np.asarray(array, np.float64) for share, array in zip(shares, own, strict=True)
            )
            np.testing.assert_array_equal(mean, expected.astype(np.float32))


def test_other_models_and_weights_are_rejected(tmp_path: Path) -> None:
    paths, _ = write_models(tmp_path, layer_norm_epsilon=1e-3)
    with pytest.raises(
        InputError, match=rf"^{paths[2]}: differs from {paths[0]}: layer_norm_epsilon is 0.001, must"
    ):
        average_models(paths)
    for weights in ([1], [1, -1], [1, float("nan")], [0, 1]):
        with pytest.raises(InputError, match=r"^weights .*: must be 2 positive numbers"):
            average_models(paths[:2], weights)
    with pytest.raises(InputError, match=r"^1 model: must be at least two"):
        average_models(paths[:1])
    with pytest.raises(InputError, match=r"not a run folder"):
        last_checkpoints(paths[0], 2)


def test_the_last_checkpoints_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "mean"
    command = ["average", str(uninterrupted()), "--output", str(output), "--linear", "--last"]
    assert run_command([*command, "2"]) is None
    steps = [uninterrupted() / "checkpoints" / step for step in ("35", "40")]
    assert capsys.readouterr().out == f"{output}: mean of {steps[0]}, {steps[1]}\n"
    first, second, mean = (jax.tree.leaves(load_model(model).params) for model in (*steps, output))
    for a, b, c in zip(first, second, mean, strict=True):
        np.testing.assert_allclose(c, (np.float64(a) + 2 * np.float64(b)) / 3, rtol=1e-6, atol=1e-12)
    assert load_model(output).training == load_model(uninterrupted()).training
    with pytest.raises(
        InputError, match=r"has 3 checkpoints: must have 4, at least 1; keep_checkpoints = 4 keeps"
    ):
        run_command([*command[:3], str(tmp_path / "other"), "--last", "4"])
    assert not (tmp_path / "other").exists()
