"""Config files and the settings that follow them; every shipped config is loaded and its step traced."""

from dataclasses import replace
from pathlib import Path

import jax
import pytest

from mlm_jax.commands.config_flags import parse_config
from mlm_jax.config import MeshConfig, TrainConfig
from mlm_jax.config.files import load_config
from mlm_jax.config.masking import MaskingConfig
from mlm_jax.config.settings import to_json
from mlm_jax.errors import InputError
from mlm_jax.parallel.sharding import make_mesh
from mlm_jax.step.program import build_program
from mlm_jax.store.run_folder import read_config

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


def test_a_config_derives_from_its_neighbour_and_the_command_line_from_it(tmp_path: Path) -> None:
    (tmp_path / "parent_of_test.py").write_text(
        "from mlm_jax.config import TrainConfig\ndef config(): return TrainConfig(num_steps=7, seed=3)\n"
    )
    child = tmp_path / "child.py"
    child.write_text(
        "from dataclasses import replace\nfrom parent_of_test import config as parent\n"
        "def config(): return replace(parent(), num_steps=9)\n"
    )
    flags = [
        "--data.path",
        "there",
        "--mesh.tensor",
        "2",
        "--optimizer.freeze",
        "a/*",
        "b/*",
        "--output-dir",
        "out",
    ]
    config = parse_config([str(child), *flags], "train.py")
    assert (config.num_steps, config.seed) == (9, 3)
    assert (config.data.path, config.mesh.tensor, config.output_dir) == ("there", 2, "out")
    assert config.optimizer.freeze == ("a/*", "b/*")


def test_a_run_can_be_started_again_from_its_own_json(tmp_path: Path) -> None:
    config = TrainConfig(seed=5, num_steps=11)
    (tmp_path / "config.json").write_text(to_json(config))
    assert load_config(tmp_path / "config.json") == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", r"must define config\(\)"),
        ("def config():\n    return 3\n", r"config\(\) gave int"),
        ("def config(\n", r"c\.py:1: SyntaxError"),
        ("x = 1\n\ndef config():\n    return 1 / 0\n", r"c\.py:4: ZeroDivisionError"),
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


MISSPELT = "from mlm_jax.config import *\n\ndef config():\n    return TrainConfig({})\n"
DERIVED = (
    "from dataclasses import replace\nfrom misspelt_of_test import *\ndef config():\n    return replace({})\n"
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            MISSPELT.format("optimizer=OptimizerConfig(learning_rat=1.0)"),
            ":4: OptimizerConfig.learning_rat: no such setting; did you mean 'learning_rate'?",
        ),
        (
            MISSPELT.format("num_step=3"),
            ":4: TrainConfig.num_step: no such setting; did you mean 'num_steps'?",
        ),
        (MISSPELT.format("qqq=3"), ":4: TrainConfig.qqq: no such setting"),
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
def test_a_misspelt_setting_is_named_with_its_line_and_the_nearest(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "misspelt_of_test.py").write_text("from mlm_jax.config import *\n")
    path = tmp_path / "c.py"
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        load_config(path)
    assert str(refused.value) == f"{path}{message}"


def test_an_error_in_a_neighbour_is_named_with_the_line_of_the_neighbour(tmp_path: Path) -> None:
    (tmp_path / "wrong_of_test.py").write_text(MISSPELT.format("num_step=3"))
    path = tmp_path / "c.py"
    path.write_text("from wrong_of_test import config\n")
    with pytest.raises(InputError) as refused:
        load_config(path)
    assert str(refused.value).startswith(f"{tmp_path / 'wrong_of_test.py'}:4: TrainConfig.num_step: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"seed": "\xff"}', "broken UTF-8 at byte 10"),
        (b'{"seed": }', "TrainConfig: not JSON"),
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--optimizer.learning-rat", "1"],
            r"--optimizer\.learning-rat: no such setting; did you mean .*learning-rate",
        ),
        (["--num-step=3"], r"--num-step: no such setting; did you mean '--num-steps'"),
        (["--optimizer.no-warmup"], r"--optimizer\.no-warmup: no such setting(?!.*no-warmup)"),
        (["--no-seed"], r"--no-seed: no such setting; did you mean '--seed'"),
        (["--model.no-poler"], r"did you mean '--model\.no-pooler'"),
    ],
)
def test_a_misspelt_flag_is_answered_with_the_nearest(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "config.json").write_text(to_json(TrainConfig()))
    with pytest.raises(InputError, match=message):
        parse_config([str(tmp_path / "config.json"), *arguments], "train.py")


LONG_PATH = f"/home/{'a-long-folder/' * 8}with a space/file.txt"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-steps", "many"], "--num-steps: invalid literal for int.*'many'"),
        (["--optimizer.name", "sgd"], r"invalid choice 'sgd'.*--optimizer\.name.*'adamw', 'lamb'"),
        (["--num-steps", "0"], r"^TrainConfig\.num_steps = 0: must be at least 1$"),
        (["--num-steps"], "Missing value for argument '--num-steps'"),
        (["stray"], "^Unrecognized options: stray$"),
        (["--num-steps", LONG_PATH], f"^--num-steps: invalid literal for int.*: '{LONG_PATH}'$"),
        (["/home/x/y.txt", LONG_PATH], f"^Unrecognized options: /home/x/y.txt, {LONG_PATH}$"),
    ],
)
def test_an_ill_typed_setting_is_told_in_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "config.json").write_text(to_json(TrainConfig()))
    with pytest.raises(InputError, match=message) as refused:
        parse_config([str(tmp_path / "config.json"), *arguments], "train.py")
    assert "\n" not in str(refused.value)


def test_without_a_config_the_usage_is_told() -> None:
    with pytest.raises(InputError, match=r"usage: train\.py CONFIG\.py"):
        parse_config([], "train.py")
