"""Scripts report wrong arguments and missing files in one line, and describe their flags."""

import json
from pathlib import Path
from typing import Any

import pytest

from mlm_jax.config import DataConfig, MeshConfig
from mlm_jax.config.settings import to_json
from tests.run_small import config_of, prepared, run_script, run_script_alone, uninterrupted, write_config


def assert_refused(ended: Any, *said: str) -> None:
    """Asserts exit code 2 and one line on stderr that contains all of `said`."""
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == ""
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1, ended.stderr
    for part in said:
        assert part in ended.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--data.path", ""), ("data.path: must name a folder written by mlm-jax prepare",)),
        (("--data.path", "no/such/folder"), ("no/such/folder",)),
        (
            ("--mesh.data", 3),
            ("mesh: data 3 × fsdp 1 × tensor 1 is 3 devices: must be the 1 available",),
        ),
        (("--data.sequence-length", 25), ("data.sequence_length = 25", "model.max_sequence_length = 24")),
        (("--optimizer.learning-rat", 0.1), ("no such flag; did you mean '--optimizer.learning-rate'?",)),
        (("--batch-size", "abc"), ("--batch-size 'abc': must be a whole number",)),
        (("--data.packing", "pack"), ("--data.packing 'pack': must be one of 'packed'",)),
        (("--model.num-heads", 3), ("BertConfig.num_heads = 3: must be a divisor of hidden_dim = 16",)),
        (("--seeed=1",), ("--seeed: no such flag; did you mean '--seed'?",)),
        (("--model.vocabulary-size", 200), ("model.vocabulary_size = 200: must be at least", "300")),
        (("--optimizer.freeze", "encoder/nothing"), ("optimizer.freeze: 'encoder/nothing'",)),
        (("--init-from", "no/such/run"), ("no/such/run",)),
    ],
)
def test_train_refuses_and_writes_nothing(
    tmp_path: Path, flags: tuple[object, ...], said: tuple[str]
) -> None:
    config = write_config(config_of(tmp_path / "run"))
    assert_refused(run_script("train", config, *flags), *said)
    assert list(tmp_path.iterdir()) == [config]


@pytest.mark.parametrize(
    ("mesh", "said"),
    [
        (
            MeshConfig(data=8),
            "batch_size / accumulation_steps = 4: must be a multiple of mesh.data × mesh.fsdp = 8",
        ),
        (MeshConfig(data=1, tensor=8), "mesh.tensor = 8: must divide"),
        (MeshConfig(data=1, fsdp=3), "mesh: data 1 × fsdp 3 × tensor 1 is 3 devices: must be the 8"),
    ],
)
def test_a_mesh_has_to_divide_what_it_splits(tmp_path: Path, mesh: MeshConfig, said: str) -> None:
    config = write_config(config_of(tmp_path / "run", mesh=mesh, accumulation_steps=2))
    assert_refused(run_script("train", config, devices=8), said)
    assert list(tmp_path.iterdir()) == [config]


def test_train_tells_what_is_wrong_with_a_config_file(tmp_path: Path) -> None:
    assert_refused(run_script("train", tmp_path / "none.py"), f"{tmp_path / 'none.py'}: no such config file")
    assert_refused(run_script("train"), "the first argument must be a config")
    tree = json.loads(to_json(config_of(tmp_path / "run")))
    tree["optimizer"]["learning_rat"] = tree["optimizer"].pop("learning_rate")
    (tmp_path / "config.json").write_text(json.dumps(tree))
    said = "optimizer.learning_rat: no such setting; did you mean 'learning_rate'?"
    assert_refused(run_script("train", tmp_path / "config.json"), said)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.slow
def test_fill_mask_answers_in_lines_and_in_json() -> None:
    text = "The [MASK] of Liberty is in [MASK] York."
    arguments = ("fill_mask", uninterrupted(), text, "--top-k", 2)
    shown = run_script_alone(*arguments, "--no-joint")
    assert shown.returncode == 0, shown.stderr
    assert len([line for line in shown.stdout.splitlines() if line]) == 4
    as_json = run_script(*arguments, "--no-joint", "--json")
    masks = json.loads(as_json.stdout)
    assert [len(candidates) for candidates in masks] == [2, 2]
    for candidate in (candidate for candidates in masks for candidate in candidates):
        assert list(candidate) == ["score", "token", "token_str", "sequence"]
        assert candidate["token_str"] in shown.stdout
        assert candidate["sequence"].count("[MASK]") == 1
    texts = (text, "The [MASK].")
    together = run_script("fill_mask", uninterrupted(), *texts, "--json", "--targets", "the", "of")
    first, second = (json.loads(line) for line in together.stdout.splitlines())
    assert first
    assert all(len(candidate["token"]) == 2 and "[MASK]" not in candidate["sequence"] for candidate in first)
    assert len(second) == 2, together.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("A text without one.",), "no [MASK] in 'A text without one.': must have at least one"),
        (("A [MASK].", "--top-k", 0), "top_k = 0: must be in [1, 295]"),
        (("[MASK] " * 30,), "the text has 32 tokens: the model takes at most 24"),
    ],
)
def test_fill_mask_refuses(arguments: tuple[object, ...], said: str) -> None:
    assert_refused(run_script("fill_mask", uninterrupted(), *arguments), said)


def test_what_is_no_run_folder_is_refused(tmp_path: Path) -> None:
    said = f"{tmp_path}: not a known model format"
    assert_refused(run_script("fill_mask", tmp_path, "A [MASK]."), said)
    assert_refused(run_script("evaluate", tmp_path, "--data", prepared()), said)
    (tmp_path / "config.json").write_text(to_json(config_of(tmp_path)))
    assert_refused(run_script("evaluate", tmp_path, "--data", prepared()), f"{tmp_path}: no checkpoint")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_evaluate_refuses_data_of_another_tokenizer(tmp_path: Path) -> None:
    other = prepared(0, 200, 280)
    assert_refused(run_script("evaluate", uninterrupted(), "--data", other), str(other), "tokenizer")
    none = tmp_path / "none"
    assert_refused(run_script("evaluate", uninterrupted(), "--data", none), str(none))
    assert not none.exists()


FLAGS = {
    "train_tokenizer": ("--input", "--vocab-size", "--output", "--text-field"),
    "prepare_data": ("--input", "--tokenizer", "--output", "--text-field", "--workers", "--errors"),
    "evaluate": ("MODEL", "--data"),
    "fill_mask": ("MODEL", "TEXT", "--top-k", "--targets", "--no-joint", "--json"),
    "extract_features": ("MODEL", "TEXT_FILE", "--output", "--layer", "--pooling", "--truncate"),
    "probe_bias": ("MODEL", "--template", "--group", "--crows-pairs", "--winobias", "--blimp", "--output"),
    "finetune": ("MODEL", "--train", "--dev", "--output", "--random-weights"),
    "convert_checkpoint": ("SOURCE", "TARGET", "--to", "--dtype", "--allow-random-head", "--backbone-only"),
}


@pytest.mark.parametrize("script", FLAGS)
def test_help_names_every_flag(script: str) -> None:
    ended = run_script(script, "--help")
    assert ended.returncode == 0
    for flag in FLAGS[script]:
        assert flag in ended.stdout


def test_help_of_train_names_every_setting(tmp_path: Path) -> None:
    ended = run_script("train", "--help")
    assert ended.returncode == 0
    assert "CONFIG" in ended.stdout
    config = write_config(config_of(tmp_path / "run", data=DataConfig(sequence_length=20)))
    ended = run_script("train", config, "--help-all")
    assert ended.returncode == 0
    for flag in (
        "--output-dir",
        "--num-steps",
        "--data.path",
        "--mesh.data",
        "--mesh.fsdp",
        "--optimizer.freeze",
    ):
        assert flag in ended.stdout
    assert list(tmp_path.iterdir()) == [config]
