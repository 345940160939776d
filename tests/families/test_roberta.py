"""RoBERTa: a trained model of antibody sequences, its positions, heads and texts, without transformers."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlm_jax.config import BertConfig
from mlm_jax.errors import InputError
from mlm_jax.families.registry import FAMILIES, family_of
from mlm_jax.formats import hugging_face
from mlm_jax.store import conversion
from mlm_jax.store.conversion import Request, convert
from mlm_jax.store.reference_outputs import Reference
from mlm_jax.text.tokenizer import Tokenizer
from mlm_jax.use.labeled_batches import labeled_rows
from mlm_jax.use.masked_lm import MaskedLM
from mlm_jax.use.text_classifier import TextClassifier

HEAVY_CHAIN = (
    "QVQLVQSGAEVKKPGASVKVSCKASGYTFTSYAMHWVRQAPGQRLEWMGWINAGNGNTKYSQKFQGRVTITRDTSASTAYMELSSLRSEDTAVYYCAR"
)


@pytest.fixture(autouse=True)
def _libraries_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "ask_library", lambda name, *_: Reference(name, None, "not asked"))


@pytest.fixture
def folder(shared_data: Path, tmp_path: Path) -> Path:
    copy = shutil.copytree(shared_data / "weights/sapiens-vh-roberta", tmp_path / "sapiens")
    for path in (copy, *copy.iterdir()):
        path.chmod(0o755)
    return copy


def change(folder: Path, **settings: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))


def test_the_family_follows_from_the_fields() -> None:
    assert family_of(BertConfig(position_offset=2, num_segments=1)).name == "RoBERTa"
    assert family_of(BertConfig()).name == "BERT"
    assert family_of(BertConfig(num_segments=0, pooler=False)).name == "DistilBERT"
    types = [family.model_type for family in FAMILIES]
    assert len(types) == len(set(types))


@pytest.mark.parametrize("mask", ["<mask>", "[MASK]"])
def test_a_trained_model_fills_the_first_residues(folder: Path, mask: str) -> None:
    (answer,) = MaskedLM.from_preset(folder).fill_mask(mask * 7 + HEAVY_CHAIN[7:], top_k=1)
    assert answer["sequence"] == HEAVY_CHAIN
    assert answer["token_str"] == list(HEAVY_CHAIN[:7])


def test_there_and_back_is_the_same_to_the_bit(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "ours", "mlm_jax")
    convert(tmp_path / "ours", tmp_path / "back", "hugging_face")
    before, after = (load_file(place / "model.safetensors") for place in (folder, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    settings, written = (json.loads((p / "config.json").read_text()) for p in (folder, tmp_path / "back"))
    for name in ("architectures", "model_type", "max_position_embeddings", "pad_token_id", "layer_norm_eps"):
        assert written[name] == settings[name], name
    first, second = (MaskedLM.from_preset(place).tokenizer for place in (folder, tmp_path / "back"))
    assert first.fingerprint == second.fingerprint
    assert first.roles == second.roles
    assert first.frame == second.frame
    for target in ("google_tf", "keras_hub"):
        with pytest.raises(InputError, match="position_offset = 2"):
            convert(folder, tmp_path / target, target, Request(change_conventions=True))


def test_the_first_rows_of_the_position_table_are_not_read(folder: Path) -> None:
    before = MaskedLM.from_preset(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["roberta.embeddings.position_embeddings.weight"][:2] = 7.0
    save_file(tensors, folder / "model.safetensors")
    after = MaskedLM.from_preset(folder)
    np.testing.assert_array_equal(before.features([HEAVY_CHAIN]), after.features([HEAVY_CHAIN]))
    assert before.config.max_sequence_length == 144
    assert before.config.position_offset == 2


@pytest.mark.slow
def test_a_trained_model_is_continued_and_given_back(folder: Path, tmp_path: Path) -> None:
    lm = MaskedLM.from_preset(folder)
    before = lm.evaluate([HEAVY_CHAIN] * 4).mlm_loss
    lm.fit([HEAVY_CHAIN] * 8, num_steps=8, batch_size=4, learning_rate=1e-3)
    assert lm.evaluate([HEAVY_CHAIN] * 4).mlm_loss < before
    lm.save(tmp_path / "own")
    convert(tmp_path / "own", tmp_path / "back", "hugging_face")
    assert hugging_face.read(tmp_path / "back").model.config == lm.config


def test_a_classifier_is_the_dense_layer_and_the_projection(folder: Path, tmp_path: Path) -> None:
    classifier = TextClassifier.from_preset(folder, labels=["heavy", "light"])
    classifier.save(tmp_path / "own")
    convert(tmp_path / "own", tmp_path / "back", "hugging_face")
    tensors = load_file(tmp_path / "back" / "model.safetensors")
    assert "classifier.dense.weight" in tensors
    assert "roberta.pooler.dense.weight" not in tensors
    # Files of older versions have a pooler that the class does not read.
    tensors["roberta.pooler.dense.weight"] = np.zeros((128, 128), np.float32)
    save_file(tensors, tmp_path / "back" / "model.safetensors")
    (tmp_path / "back" / "mlm_jax.sha256").unlink()
    reading = hugging_face.read(tmp_path / "back")
    assert reading.model.labels == ("heavy", "light")
    assert list(reading.dropped) == ["roberta.pooler.dense.weight"]
    pair = (HEAVY_CHAIN[:9], HEAVY_CHAIN[:9])
    again = TextClassifier.from_preset(tmp_path / "back")
    np.testing.assert_array_equal(
        again.predict_probabilities([pair, HEAVY_CHAIN]),
        classifier.predict_probabilities([pair, HEAVY_CHAIN]),
    )


def test_pairs_have_two_separators_and_one_segment(folder: Path) -> None:
    lm = MaskedLM.from_preset(folder)
    ((token_ids, segments),) = labeled_rows([("QV", "LS")], lm.config, lm.tokenizer, None)
    assert token_ids.tolist() == [0, *lm.tokenizer.encode("QV"), 2, 2, *lm.tokenizer.encode("LS"), 2]
    assert not segments.any()
    rows = labeled_rows([("QVQVQV", "LSLSLS")] * 2, lm.config, lm.tokenizer, 8)
    assert [len(row) for row, _ in rows] == [8, 8]
    with pytest.raises(InputError, match=r"sequence_length = 5: must be in \[6, 144\]"):
        labeled_rows([("QV", "LS")], lm.config, lm.tokenizer, 5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pad_token_id": 145}, "max_position_embeddings = 146, pad_token_id = 145: must be whole numbers"),
        ({"pad_token_id": "1"}, "pad_token_id = '1': must be whole numbers"),
        ({"pad_token_id": 3}, "positions count from 4, .* but the tokenizer pads with 1: must be 3"),
        (
            {"position_embedding_type": "relative_key"},
            "position_embedding_type = 'relative_key' is not supported",
        ),
        (
            {"model_type": "deberta"},
            "model_type 'deberta' is not supported: must be one of 'bert', 'roberta'",
        ),
    ],
)
def test_contradictions_are_refused(folder: Path, settings: dict[str, object], message: str) -> None:
    change(folder, **settings)
    with pytest.raises(InputError, match=message):
        hugging_face.read(folder)


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ({"mask_token": "<pad>"}, "'<pad>' is its pad_token and its mask_token: must be two tokens"),
        ({"pad_token": "</s>"}, "'</s>' is its pad_token and its sep_token: must be two tokens"),
        ({"mask_token": None}, "names no mask_token: must have all of pad_token, unk_token"),
    ],
)
def test_roles_that_a_row_needs_apart(folder: Path, roles: dict[str, str | None], message: str) -> None:
    file = folder / "tokenizer_config.json"
    stated = json.loads(file.read_text()) | roles
    file.write_text(json.dumps({name: value for name, value in stated.items() if value is not None}))
    with pytest.raises(InputError, match=message):
        Tokenizer.load(folder)


def test_the_unknown_token_may_be_named_by_the_model_alone(folder: Path) -> None:
    file = folder / "tokenizer_config.json"
    stated = json.loads(file.read_text())
    del stated["unk_token"]
    file.write_text(json.dumps(stated))
    assert Tokenizer.load(folder).roles.unk_token == "<unk>"


def test_a_tokenizer_that_pads_otherwise_is_not_written(folder: Path, tmp_path: Path) -> None:
    model = hugging_face.read(folder).model
    model = replace(model, config=replace(model.config, position_offset=1, max_sequence_length=145))
    with pytest.raises(InputError, match="positions count from 1"):
        hugging_face.write(model, tmp_path)
    with pytest.raises(InputError, match=r"position_offset = 1: must be 0 with positions 'rotary'"):
        BertConfig(positions="rotary", position_offset=1)
