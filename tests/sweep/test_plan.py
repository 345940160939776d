"""Definition of a sweep, and its checks before anything is trained."""

import ast
from dataclasses import asdict, replace
from pathlib import Path

import jax
import pytest

from mlm_jax.config import DataConfig, MeshConfig, TrainConfig
from mlm_jax.config.masking import MaskingConfig
from mlm_jax.errors import InputError
from mlm_jax.parallel.sharding import make_mesh
from mlm_jax.step.program import build_program
from mlm_jax.sweep.plan import Sweep, describe_trial, load_sweep, runs_of, share_of

BASE = TrainConfig(data=DataConfig(path="a", eval_path="b"))
SETUP = """from dataclasses import replace
from mlm_jax.config import *
from mlm_jax.config.masking import MaskingRecipe
base = TrainConfig(data=DataConfig(path="a", eval_path="b"))
def rate(value): return replace(base, optimizer=replace(base.optimizer, learning_rate=value))
"""


def sweep_of(tmp_path: Path, body: str) -> Sweep:
    path = tmp_path / "rates.py"
    path.write_text(f'"""Two rates,\nside by side.\n\nMore."""\n{SETUP}{body}')
    return load_sweep(path)


def test_a_sweep_is_read_from_its_file(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, 'def trials(): return {"low": rate(1e-4), "high": rate(1e-3)}')
    assert (sweep.name, sweep.baseline, sweep.description) == ("rates", "low", "Two rates, side by side.")
    assert sweep.source == str(tmp_path / "rates.py")
    assert list(sweep.trials) == ["low", "high"]
    assert sweep.trials["low"] == replace(BASE, output_dir="")
    assert describe_trial(sweep, "high") == "optimizer.learning_rate = 0.001"
    assert describe_trial(sweep, "low") == "the baseline"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "rates.py: must define trials() -> dict[str, TrainConfig]"),
        ("def trials(): return {}", "trials() returned dict: must return a dict with at least one trial"),
        ("def trials(): return [base]", "trials() returned list: must return a dict"),
        ('def trials(): return {"a/b": base}', "trial 'a/b': the name must consist of letters, digits"),
        ('def trials(): return {"": base}', "trial '': the name must consist of letters"),
        (
            'def trials(): return {"a": replace(base, distributed=DistributedConfig('
            'coordinator="h:1", num_processes=2, process_id=0))}',
            "trial 'a' has distributed.coordinator = 'h:1': must be None",
        ),
        ('def trials(): return {"lock": base}', "trial 'lock': the name must consist of letters, digits"),
        (
            'def trials(): return {"Report.md": base}',
            "trial 'Report.md': the name must consist of letters, digits",
        ),
        (
            'def trials(): return {"a": base, "A": rate(1e-3)}',
            "trials 'a' and 'A': must differ in more than capital letters",
        ),
        (
            'def trials(): return {"a": base, "b": replace(base, log_every=7)}',
            "trials 'a' and 'b' have the same config: must differ in a setting that affects what is learned",
        ),
        ('def trials(): return {"a": 1}', "trial 'a' is int: must be a TrainConfig"),
        (
            'def trials(): return {"a": replace(base, seed=3)}',
            "trial 'a' has seed = 3: must be unset, because --seeds sets it",
        ),
        (
            'def trials(): return {"a": base, "b": replace(base, sede=3)}',
            "rates.py:10: TrainConfig.sede: no such setting; did you mean 'seed'?",
        ),
        (
            'def trials(): return {"a": base, "b": rate(1e-3), "c": replace(rate(1e-3), output_dir="x")}',
            "trials 'b' and 'c' have the same config: must differ in a setting",
        ),
        (
            'def trials(): return {"a": replace(base, data=DataConfig(path="a"))}',
            "trial 'a' has no data.eval_path: must name the data for all trials",
        ),
        (
            'def trials(): return {"a": base, "b": replace(base, data=DataConfig(path="a", eval_path="c"))}',
            "trial 'b' is evaluated with data.eval_path = 'c': must be 'b', as in 'a', to be compared with it",
        ),
        (
            'def trials(): return {"a": base, "b": replace(base, eval_batches=3)}',
            "eval_batches * batch_size / accumulation_steps = 96: must be None, as in 'a'",
        ),
        (
            'def trials(): return {"a": base, "b": replace(base, eval_masking=MaskingRecipe(mask_token_rate=0.9))}',
            "trial 'b' is evaluated with eval_masking.mask_token_rate = 0.9: must be 0.8, as in 'a'",
        ),
    ],
)
def test_errors_are_reported_before_any_training(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        sweep_of(tmp_path, body)
    assert message in str(error.value)
    assert "rates.py" in str(error.value)


def test_trials_with_different_packings_and_batches_can_be_comparable(tmp_path: Path) -> None:
    body = """def trials():
    data = replace(base.data, packing="document", eval_packing="packed")
    batches = replace(base, batch_size=64, eval_batches=5, data=replace(base.data, eval_packing="packed"))
    return {"a": replace(base, eval_batches=10), "b": replace(base, data=data, eval_batches=10), "c": batches}"""
    assert len(sweep_of(tmp_path, body).trials) == 3
    with pytest.raises(InputError, match=r"data\.packing, = 'document'"):
        sweep_of(tmp_path, body.replace(', eval_packing="packed")', ")", 1))


def test_runs_are_ordered_by_seed_and_divided_into_shares(tmp_path: Path) -> None:
    sweep = Sweep(
        "s", "s.py", "", {"a": BASE, "b": replace(BASE, num_steps=5), "c": replace(BASE, num_steps=6)}
    )
    runs = runs_of(sweep, tmp_path, 3)
    assert [run.name for run in runs[:4]] == ["a/seed_0", "b/seed_0", "c/seed_0", "a/seed_1"]
    assert runs[4].config == replace(BASE, num_steps=5, seed=1, output_dir=str(tmp_path / "b" / "seed_1"))
    with pytest.raises(InputError, match=r"--seeds 0: must be at least 1"):
        runs_of(sweep, tmp_path, 0)
    for index, count in ((4, 4), (-1, 4), (0, 0)):
        with pytest.raises(InputError, match="must be 0 <= index < count"):
            share_of(runs, index, count)


@pytest.mark.parametrize("num_trials", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 12])
def test_shares_are_even_and_mix_all_trials(tmp_path: Path, num_trials: int, count: int) -> None:
    trials = {f"t{steps}": replace(BASE, num_steps=steps) for steps in range(1, num_trials + 1)}
    runs = runs_of(Sweep("s", "s.py", "", trials), tmp_path, 12)
    shares = [share_of(runs, index, count) for index in range(count)]
    assert sorted(run.name for share in shares for run in share) == sorted(run.name for run in runs)
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    # In the order of the sweep, and no trial the task of one process, which may be another machine or be lost.
    assert all(share == [run for run in runs if run in share] for share in shares)
    assert all(len({run.trial for run in share}) == min(num_trials, len(share)) for share in shares)


SHIPPED = sorted((Path(__file__).parents[2] / "configs" / "ablations").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [path for path in SHIPPED if "def trials" in path.read_text()], ids=lambda path: path.stem
)
def test_every_trial_of_a_shipped_sweep_traces_its_step(path: Path) -> None:
    sweep = load_sweep(path)
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert f"mlm-jax ablate ablations/{path.stem} " in docstring
    for config in sweep.trials.values():
        masking = MaskingConfig(
            **asdict(config.masking)
            | {"mask_selection_length": config.masking.selection_length(config.data.sequence_length)},
            vocabulary_size=config.model.vocabulary_size,
            mask_token_id=4,
        )
        one = replace(config, mesh=MeshConfig(data=1))
        assert (
            build_program(one, masking, make_mesh(one.mesh, jax.devices()[:1]), 3).lowered_train is not None
        )
