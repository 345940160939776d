"""Runs that continue a model: one without a head, and dropout and initializer of the source unless told otherwise."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mlm_jax.commands import train as train_command
from mlm_jax.config import TrainConfig
from mlm_jax.config.model import BertConfig
from mlm_jax.errors import InputError
from mlm_jax.formats.model_folder import StoredModel, random_model, write_model_folder
from mlm_jax.model.bert import abstract_masked_lm
from mlm_jax.model.layers import split_model
from mlm_jax.run.init_from import params_to_start_from
from mlm_jax.run.trainer import TrainResult
from mlm_jax.text.tokenizer import Tokenizer
from tests.run_small import MODEL, config_of, tokenizer, write_config


def stored(folder: Path, config: BertConfig = MODEL, parts: tuple[str, ...] = ("encoder",)) -> Path:
    model = random_model(config, tokenizer(), 0)
    folder.mkdir()
    write_model_folder(folder, StoredModel(config, {part: model.params[part] for part in parts}, tokenizer()))
    return folder


def test_an_encoder_without_a_head_gets_a_random_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The activation and the epsilon of a head that does not exist do not matter, nor does its tying.
    wanted = replace(MODEL, head_activation="gelu_tanh", head_layer_norm_epsilon=1e-5, vocabulary_multiple=64)
    source = str(stored(tmp_path / "encoder"))
    first, same, other = (params_to_start_from(source, wanted, tokenizer(), seed) for seed in (0, 0, 1))
    said = capsys.readouterr().err
    assert said.count("has no masked-LM head: the run starts with a random one") == 3
    jax.tree.map(np.testing.assert_array_equal, first, same)
    assert (first["head"]["dense"]["kernel"] != other["head"]["dense"]["kernel"]).any()
    jax.tree.map(np.testing.assert_array_equal, first["encoder"], other["encoder"])
    assert first["head"]["bias"].shape == first["encoder"]["embeddings"]["token"].shape[:1] == (320,)
    with pytest.raises(InputError, match=r"has model.activation = 'gelu': must be 'gelu_tanh'"):
        params_to_start_from(source, replace(wanted, activation="gelu_tanh"), tokenizer(), 0)
    with_head = str(stored(tmp_path / "masked_lm", parts=("encoder", "head")))
    with pytest.raises(InputError, match=r"has model.head_activation = 'gelu': must be 'gelu_tanh'"):
        params_to_start_from(with_head, wanted, tokenizer(), 0)


def test_a_dropout_that_is_not_the_sources_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(stored(tmp_path / "source", parts=("encoder", "head")))
    params_to_start_from(source, MODEL, tokenizer(), 0)
    assert capsys.readouterr().err.splitlines() == [
        f"weights from {source}: 8,076 parameters, all 26 tensors used"
    ]
    params_to_start_from(source, replace(MODEL, dropout_rate=0.0), tokenizer(), 0)
    assert "has model.dropout_rate = 0.1: this run has 0.0" in capsys.readouterr().err


def test_tensors_that_are_not_used_and_parameters_that_are_new_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Of a pooler, no setting matters to a run without one.
    config = replace(MODEL, pooler=True, pooler_kind="relu", pooling="mean")
    params_to_start_from(str(stored(tmp_path / "source", config)), MODEL, tokenizer(), 0)
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .endswith(
            ": 8,076 parameters, 21 of 23 tensors used; not used: encoder/pooler/bias, encoder/pooler/kernel; "
            "new: head/bias, head/dense/bias, head/dense/kernel, head/norm/bias, head/norm/scale"
        )
    )


def test_the_command_keeps_dropout_and_initializer_of_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = replace(MODEL, dropout_rate=0.2, attention_dropout_rate=0.3, initializer_stddev=0.05)
    source = stored(tmp_path / "source", theirs)
    runs: list[TrainConfig] = []

    def train(config: TrainConfig, from_step: int | None) -> TrainResult:
        runs.append(config)
        return TrainResult(tmp_path, 1, finished=True)

    monkeypatch.setattr("mlm_jax.run.trainer.train", train)
    config = config_of(tmp_path / "run", model=replace(MODEL, dropout_rate=0.0))
    file = str(write_config(config))
    for arguments, kept in (
        ([], config.model),
        (["--init-from", str(source)], theirs),
        (["--init-from", str(source), "--model.dropout-rate", "0.1"], replace(theirs, dropout_rate=0.1)),
        (["--init-from", "None"], config.model),
    ):
        train_command.main([file, *arguments], "PROG")
        assert runs[-1].model == kept
        said = capsys.readouterr().err
        assert ("model.dropout_rate = 0.2, as in" in said) == (kept == theirs)
    # What the config says of a model that it names itself holds.
    named = str(write_config(replace(config, init_from=str(source)), "named.json"))
    train_command.main([named], "PROG")
    assert runs[-1].model == config.model
    # A run that is resumed does not need its source any more.
    started = replace(config, init_from=str(tmp_path / "gone"), model=theirs)
    (tmp_path / "run").mkdir()
    write_config(replace(started, output_dir=str(tmp_path / "run" / "here")))
    train_command.main([file, "--init-from", str(tmp_path / "gone")], "PROG")
    assert runs[-1].model == theirs


def logits(config: BertConfig, params: dict, rows: np.ndarray) -> np.ndarray:
    graph, _ = split_model(abstract_masked_lm(config))
    everywhere = jnp.broadcast_to(jnp.arange(rows.shape[1]), rows.shape)
    model = nnx.merge(graph, jax.tree.map(jnp.asarray, params))
    return np.asarray(model(jnp.asarray(rows), jnp.ones(rows.shape, bool), everywhere))


@pytest.mark.parametrize(
    ("length", "told"),
    [(60, "positions from 24 on are copies of those"), (10, "positions from 10 on are left out")],
)
def test_learned_positions_are_repeated_or_cut(
    length: int, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(MODEL, position_offset=2)
    source = str(stored(tmp_path / "source", config, ("encoder", "head")))
    before = params_to_start_from(source, config, tokenizer(), 0)
    wanted = replace(config, max_sequence_length=length)
    params = params_to_start_from(source, wanted, tokenizer(), 0)
    said = capsys.readouterr().err
    assert f"has model.max_sequence_length = 24: this run has {length}\n{told}" in said
    old, new = (tree["encoder"]["embeddings"]["position"] for tree in (before, params))
    np.testing.assert_array_equal(new[:2], old[:2])
    np.testing.assert_array_equal(new[2:], old[2:][np.arange(length) % 24])
    rows = np.random.default_rng(0).integers(5, 300, (3, min(24, length)), dtype=np.int32)
    np.testing.assert_array_equal(logits(wanted, params, rows), logits(config, before, rows))
    assert logits(wanted, params, np.tile(rows[:, :10], length // 10)).shape == (3, length, 300)


def test_rotary_bases_may_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = replace(
        MODEL, positions="rotary", num_layers=2, local_attention_window=4, global_attention_every=2
    )
    source = str(stored(tmp_path / "source", config, ("encoder", "head")))
    bases = {"max_sequence_length": 60, "rotary_base": 160_000.0, "local_rotary_base": 10_000.0}
    params = params_to_start_from(source, replace(config, **bases), tokenizer(), 0)
    said = capsys.readouterr().err
    for name, value in bases.items():
        assert f"has model.{name} = {getattr(config, name)!r}: this run has {value!r}\n" in said
    assert "copies" not in said
    jax.tree.map(np.testing.assert_array_equal, params, params_to_start_from(source, config, tokenizer(), 0))


def test_all_that_differs_is_refused_in_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(stored(tmp_path / "source", parts=("encoder", "head")))
    wanted = replace(MODEL, num_layers=2, positions="rotary", max_sequence_length=60)
    other = Tokenizer.train(["red apples are sweet"], 300)
    with pytest.raises(InputError) as refused:
        params_to_start_from(source, wanted, other, 0)
    assert str(refused.value) == (
        f"init_from = {source!r}: has the tokenizer {tokenizer().fingerprint[:12]}: must be that of the data, "
        f"{other.fingerprint[:12]}; model.num_layers = 1: must be 2, as in the run; model.positions = 'learned': "
        f"must be 'rotary', as in the run. mlm-jax prepare --tokenizer {source} prepares data with that of the model; "
        "without a config, the run takes its settings from the model"
    )
    # What would be changed says nothing of a run that does not start.
    assert capsys.readouterr().err == ""
