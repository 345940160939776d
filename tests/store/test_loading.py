"""Loading a model by name or folder, with its weights or as a random model."""

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlm_jax.config.presets import PRESETS
from mlm_jax.errors import InputError
from mlm_jax.store.checkpoint import Checkpointer
from mlm_jax.store.conversion import Request, convert
from mlm_jax.store.format_registry import read_model
from mlm_jax.store.loading import load_model
from mlm_jax.store.run_folder import verify_checkpoints
from mlm_jax.text.tokenizer import Tokenizer
from tests.formats.folders import hugging_face_folder, write_vocabulary
from tests.run_small import arrays_of, config_of, run_script, tokenizer, uninterrupted, write_config


@pytest.mark.slow
def test_formats_give_the_same_model(tmp_path: Path) -> None:
    source = hugging_face_folder(tmp_path / "source")
    convert(source, tmp_path / "ours", "mlm_jax", Request())
    first, second = load_model(source), load_model(str(tmp_path / "ours"))
    assert first.config == second.config
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)
    assert first.tokenizer.fingerprint == second.tokenizer.fingerprint


def test_a_run_gives_its_newest_checkpoint() -> None:
    model = load_model(uninterrupted())
    saved = arrays_of(uninterrupted(), 40)["params.encoder.embeddings.token"]
    assert model.params["encoder"]["embeddings"]["token"].tobytes() == saved[1]
    assert model.tokenizer.fingerprint == tokenizer().fingerprint


def test_a_checkpoint_of_a_run_is_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = arrays_of(uninterrupted(), 35)["params.encoder.embeddings.token"]
    monkeypatch.chdir(uninterrupted() / "checkpoints")
    for name in (uninterrupted() / "checkpoints" / "35", "35"):
        model = load_model(name)
        assert model.params["encoder"]["embeddings"]["token"].tobytes() == saved[1]
        assert model.tokenizer.fingerprint == tokenizer().fingerprint
    assert load_model("35", load_weights=False).config == model.config
    convert("35", tmp_path / "ours", "mlm_jax", Request())
    assert load_model(tmp_path / "ours").params["encoder"]["embeddings"]["token"].tobytes() == saved[1]
    with pytest.raises(InputError, match="36: no such folder"):
        load_model(uninterrupted() / "checkpoints" / "36")


def test_a_checkpoint_that_its_run_removes_meanwhile_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that is being trained removes its older checkpoints while they are read, and saves new ones."""
    run = shutil.copytree(uninterrupted(), tmp_path / "run")
    checkpoints = run / "checkpoints"
    later = shutil.copytree(checkpoints, tmp_path / "later")
    shutil.rmtree(checkpoints / "40")
    load = Checkpointer._load

    def saved_again(self: Checkpointer, step: int, *arguments: Any, **settings: Any) -> Any:
        if not (checkpoints / "40").exists():
            for path in checkpoints.iterdir():
                shutil.rmtree(path)
            (later / "40").rename(checkpoints / "40")
            (checkpoints / "50.orbax-checkpoint-tmp").mkdir()
        return load(self, step, *arguments, **settings)

    monkeypatch.setattr(Checkpointer, "_load", saved_again)
    reading = read_model(run)
    assert {file.relative_to(checkpoints).parts[0] for file in reading.files} == {"40"}
    shutil.rmtree(checkpoints / "40")
    for step in ("35", "30"):
        shutil.copytree(later / step, checkpoints / step)
    shutil.copytree(uninterrupted() / "checkpoints" / "40", later / "40")
    with pytest.raises(InputError, match="no checkpoint in checkpoints/"):
        verify_checkpoints(run)
    assert "damaged" not in capsys.readouterr().err


def test_a_damaged_checkpoint_is_not_replaced_by_another_one(tmp_path: Path) -> None:
    run = shutil.copytree(uninterrupted(), tmp_path / "run")
    for file in (run / "checkpoints" / "35").rglob("d/*"):
        os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(InputError, match="35 damaged; choose another checkpoint"):
        load_model(run / "checkpoints" / "35")


@pytest.mark.slow
def test_a_config_that_was_edited_after_training_is_rejected(tmp_path: Path) -> None:
    run = shutil.copytree(uninterrupted(), tmp_path / "run")
    file = run / "config.json"
    settings = json.loads(file.read_text())
    settings["model"]["dropout_rate"] = 0.3
    file.write_text(json.dumps(settings))
    assert load_model(run).config.dropout_rate == 0.3
    settings["model"]["activation"] = "gelu_tanh"
    file.write_text(json.dumps(settings))
    with pytest.raises(InputError, match=r'model.activation: "gelu" in the checkpoint, "gelu_tanh" now'):
        load_model(run)


@pytest.mark.slow
def test_padding_rows_of_a_runs_vocabulary_are_removed(tmp_path: Path) -> None:
    config = config_of(tmp_path / "run", num_steps=4)
    padded = replace(config, model=replace(config.model, vocabulary_multiple=64))
    ended = run_script("train", write_config(padded))
    assert ended.returncode == 0, ended.stderr
    model = load_model(tmp_path / "run")
    assert model.config == config.model
    shape, (_, bits) = (300, 16), arrays_of(tmp_path / "run", 4)["params.encoder.embeddings.token"]
    assert model.params["encoder"]["embeddings"]["token"].shape == shape
    np.testing.assert_array_equal(
        model.params["encoder"]["embeddings"]["token"],
        np.frombuffer(bits, np.float32).reshape(320, 16)[:300],
    )


def test_without_weights_the_model_is_random(tmp_path: Path) -> None:
    source = hugging_face_folder(tmp_path / "source", hidden_act="gelu_new")
    real = load_model(source)
    (source / "model.safetensors").unlink()
    drawn = load_model(source, load_weights=False)
    assert drawn.config == real.config
    assert jax.tree.map(np.shape, drawn.params) == jax.tree.map(np.shape, real.params)
    again, other = (load_model(source, load_weights=False, seed=seed) for seed in (0, 1))
    kernels = [model.params["head"]["dense"]["kernel"] for model in (drawn, again, other)]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert (kernels[0] != kernels[2]).any()


def test_a_random_model_that_does_not_fit_is_rejected_before_it_is_made(tmp_path: Path) -> None:
    source = hugging_face_folder(tmp_path / "source", num_hidden_layers=1000, hidden_size=1 << 20)
    started = time.perf_counter()
    with pytest.raises(
        InputError,
        match=r"random model of this config needs .* GB of memory for .* parameters: must be at most",
    ):
        load_model(source, load_weights=False)
    assert time.perf_counter() - started < 5


def test_what_is_left_out_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = hugging_face_folder(tmp_path / "source", architectures=["BertForMaskedLM", "BertWithACrf"])
    state = load_file(source / "model.safetensors") | {"crf.transitions": np.ones((3, 3), np.float32)}
    save_file(state, source / "model.safetensors")
    write_vocabulary(source, 205)
    load_model(source)
    assert capsys.readouterr().err.splitlines() == [
        f"{source}: 6 of the 211 rows of the embedding table have no entry in the tokenizer; kept",
        f"{source}: left out: crf.transitions (BertForMaskedLM, BertWithACrf)",
    ]


def test_a_random_built_in_model_needs_only_a_vocabulary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLM_JAX_HOME", str(tmp_path))
    kept = tmp_path / "models" / "bert_tiny_en_uncased"
    kept.mkdir(parents=True)
    write_vocabulary(kept, 30_522)
    model = load_model("bert_tiny_en_uncased", load_weights=False)
    assert model.config == PRESETS["bert_tiny_en_uncased"]
    by_hand = load_model("bert_tiny_en_uncased", load_weights=False, tokenizer=Tokenizer.load(kept))
    jax.tree.map(np.testing.assert_array_equal, model.params, by_hand.params)
    with pytest.raises(InputError, match="not a known model format"):
        load_model("bert_tiny_en_uncased")


def test_a_tokenizer_of_another_size_is_rejected(tmp_path: Path) -> None:
    source = hugging_face_folder(tmp_path / "source")
    for load_weights in (True, False):
        with pytest.raises(
            InputError, match=r"300 entries.*: must (have 211, as the model's own|be at least)"
        ):
            load_model(source, load_weights=load_weights, tokenizer=tokenizer())
