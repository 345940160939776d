"""Config files; every shipped config is loaded and its step traced."""

import json
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import pytest

from mlm_jax.config import MeshConfig, TrainConfig
from mlm_jax.config.files import load_config, shipped_configs
from mlm_jax.config.masking import MaskingConfig
from mlm_jax.config.settings import to_json
from mlm_jax.errors import InputError
from mlm_jax.parallel.sharding import make_mesh
from mlm_jax.step.program import build_program
from mlm_jax.store.run_folder import read_config
from mlm_jax.sweep.plan import load_sweep

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_traces_its_step(path: Path) -> None:
    config = load_config(path)
    vocabulary = config.model.vocabulary_size
    masking = MaskingConfig(
        vocabulary_size=vocabulary,
        mask_token_id=4,
        mask_selection_length=config.masking.selection_length(config.data.sequence_length),
    )
    one = replace(config, mesh=MeshConfig(data=1))
    assert build_program(one, masking, make_mesh(one.mesh, jax.devices()[:1])).lowered_train is not None


def test_a_config_may_import_its_neighbors(tmp_path: Path) -> None:
    (tmp_path / "parent_of_test.py").write_text(
        "from mlm_jax.config import TrainConfig\ndef config(): return TrainConfig(num_steps=7, seed=3)\n"
    )
    child = tmp_path / "child.py"
    child.write_text(
        "from dataclasses import replace\nfrom parent_of_test import config as parent\n"
        "def config(): return replace(parent(), num_steps=9)\n"
    )
    assert load_config(child) == TrainConfig(num_steps=9, seed=3)


@pytest.mark.parametrize(
    "config",
    [
        {"format": "mlm_jax", "model": {}, "labels": None},
        {"_name_or_path": "bert", "architectures": ["BertForMaskedLM"]},
        {"attention_probs_dropout_prob": 0.1, "hidden_size": 128},
        {"module": "keras_hub.src.models.bert.bert_backbone", "class_name": "BertBackbone"},
    ],
)
def test_the_folder_of_a_model_is_no_run(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=f"of a model, not of a run: --init-from {tmp_path} starts a run"):
        load_config(tmp_path)


def test_neighbors_of_one_name_are_not_mixed_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two folders each have a base.py; the one that was imported first must not stand in for the other."""
    for folder, steps in (("first", 1), ("second", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "base.py").write_text(f"steps = {steps}\n")
        (tmp_path / folder / "c.py").write_text(
            "from mlm_jax.config import TrainConfig\nimport base\n"
            "def config(): return TrainConfig(num_steps=base.steps)\n"
        )
    callers = types.ModuleType("base")
    monkeypatch.setitem(sys.modules, "base", callers)
    assert [load_config(tmp_path / folder / "c.py").num_steps for folder in ("first", "second")] == [1, 2]
    (tmp_path / "first" / "base.py").write_text("steps = 30\n")
    assert load_config(tmp_path / "first" / "c.py").num_steps == 30
    assert sys.modules["base"] is callers
    assert str(tmp_path / "first") not in sys.path


def test_shipped_configs_are_found_by_name_and_derived_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(
        "from dataclasses import replace\nfrom mlm_jax.configs.bert_tiny_wiki import config as parent\n"
        "def config(): return replace(parent(), seed=4)\n"
    )
    assert load_config("mine.py") == replace(load_config("bert_tiny_wiki"), seed=4)
    assert set(CONFIGS) < set(shipped_configs().values())
    assert {"norm_post_1e-3", "norm_pre_1e-3"} <= {
        f"norm_{name}" for name in load_sweep("ablations/norm").trials
    }


@pytest.mark.parametrize(
    ("name", "nearest"), [("dmo", "demo"), ("bert_tiny_wiky", "bert_tiny_wiki"), ("mines.py", "mine.py")]
)
def test_a_config_that_is_not_there_is_answered_with_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, nearest: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").touch()
    with pytest.raises(InputError) as refused:
        load_config(name)
    assert str(refused.value) == f"{name}: no such config file; did you mean {nearest!r}?"


def test_a_run_is_started_again_by_its_json_or_its_folder(tmp_path: Path) -> None:
    config = TrainConfig(output_dir="elsewhere", seed=5, num_steps=11)
    (tmp_path / "config.json").write_text(to_json(config))
    assert load_config(tmp_path / "config.json") == config
    # The folder may have been moved.
    assert load_config(tmp_path) == replace(config, output_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", r"must define config\(\)"),
        ("def config():\n    return 3\n", r"config\(\) returned int"),
        ("def config(\n", r"c\.py:1: SyntaxError"),
        ("x = 1\n\ndef config():\n    return 1 / 0\n", r"c\.py:4: ZeroDivisionError"),
        ("x = 1\n\0", r"c\.py: (Syntax|Value)Error: source code"),
        (
            "import sys\nsys.exit()\n",
            r"c\.py:2: ends the process \(SystemExit: None\): must define config\(\) -> TrainConfig",
        ),
        (
            "from mlm_jax.config import TrainConfig\ndef config(): return TrainConfig(num_steps=0)\n",
            r"c\.py:2: TrainConfig\.num_steps = 0",
        ),
    ],
)
def test_a_broken_config_file_is_named_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    (tmp_path / "c.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "c.py", "c.py"):
        with pytest.raises(InputError, match=message):
            load_config(path)


MISSPELLED = "from mlm_jax.config import *\n\ndef config():\n    return TrainConfig({})\n"
DERIVED = "from dataclasses import replace\nfrom misspelled_of_test import *\ndef config():\n    return replace({})\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            MISSPELLED.format("optimizer=OptimizerConfig(learning_rat=1.0)"),
            ":4: OptimizerConfig.learning_rat: no such setting; did you mean 'learning_rate'?",
        ),
        (
            MISSPELLED.format("num_step=3"),
            ":4: TrainConfig.num_step: no such setting; did you mean 'num_steps'?",
        ),
        (MISSPELLED.format("qqq=3"), ":4: TrainConfig.qqq: no such setting"),
        (
            DERIVED.format("BertConfig(), hidden_dims=3"),
            ":4: BertConfig.hidden_dims: no such setting; did you mean 'hidden_dim'?",
        ),
        (
            "def config(): return helper(steps=3)\ndef helper(step): return 1\n",
            ":1: TypeError: helper() got an unexpected keyword argument 'steps'",
        ),
    ],
)
def test_a_misspelled_setting_is_named_with_its_line_and_the_nearest(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "misspelled_of_test.py").write_text("from mlm_jax.config import *\n")
    path = tmp_path / "c.py"
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        load_config(path)
    assert str(refused.value) == f"{path}{message}"


def test_an_error_in_a_neighbor_is_named_with_the_line_of_the_neighbor(tmp_path: Path) -> None:
    (tmp_path / "wrong_of_test.py").write_text(MISSPELLED.format("num_step=3"))
    path = tmp_path / "c.py"
    path.write_text("from wrong_of_test import config\n")
    with pytest.raises(InputError) as refused:
        load_config(path)
    assert str(refused.value).startswith(f"{tmp_path / 'wrong_of_test.py'}:4: TrainConfig.num_step: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"seed": "\xff"}', "TrainConfig: not valid JSON: invalid UTF-8 at byte 10"),
        (b'{"seed": }', "TrainConfig: not valid JSON"),
        (b'{"sed": 1}', "sed: no such setting; did you mean 'seed'?"),
        (b'{"num_steps": 0}', "TrainConfig.num_steps = 0: must be"),
    ],
)
def test_a_broken_json_config_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    for read in (lambda: load_config(path), lambda: read_config(tmp_path)):
        with pytest.raises(InputError) as refused:
            read()
        assert str(refused.value).startswith(f"{path}: {message}")
