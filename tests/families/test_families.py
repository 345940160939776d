"""Every family: its settings and files in both directions, and what it refuses, without transformers."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlm_jax.config import BertConfig
from mlm_jax.errors import InputError
from mlm_jax.families.family import Family
from mlm_jax.families.registry import FAMILIES, config_of, family_of, family_of_settings
from mlm_jax.formats import hugging_face
from mlm_jax.formats.model_folder import (
    StoredModel,
    declared_parameters,
    flatten_params,
    nest_params,
    read_model_folder,
    write_model_folder,
)
from mlm_jax.text.tokenizer import Tokenizer

SMALL = BertConfig(
    vocabulary_size=25,
    num_layers=3,
    hidden_dim=16,
    num_heads=4,
    intermediate_dim=24,
    max_sequence_length=20,
    layer_norm_epsilon=1e-12,
    pooler=False,
)
# What the conventions of a family leave open.
CHOICES: dict[str, dict[str, Any]] = {
    "electra": {"embedding_dim": 8},
    "albert": {"embedding_dim": 8},
    "modernbert": {"local_attention_window": 6, "global_attention_every": 2, "local_rotary_base": 100.0},
    "esm": {"positions": "rotary", "mask_dropout_id": 24, "position_offset": 0, "embedding_norm": False},
    "mpnet": {"position_offset": 2},
    "eurobert": {"num_key_value_heads": 2, "tie_embeddings": False},
    "gte": {"num_segments": 1},
}
BY_TYPE = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)


def config_like(family: Family) -> BertConfig:
    """Returns a small config of the family, with the first of the possible values wherever there is a choice."""
    values: dict[str, Any] = {}
    for name, possible in family.conventions.items():
        if isinstance(possible, tuple):
            values[name] = possible[0]
        elif isinstance(possible, range):
            values[name] = 2
    config = replace(SMALL, **values | CHOICES.get(family.model_type, {}), model_type=family.model_type)
    return family.expressible("hugging_face", config)


def model_of(config: BertConfig, tokenizer: Tokenizer, *heads: str) -> StoredModel:
    """Returns a model with random parameters, without the time that an initializer takes to compile."""
    random, labels = np.random.RandomState(0), ("a", "b", "c")
    declared = declared_parameters(config, ["encoder", *heads], len(labels))
    flat = {
        path: random.standard_normal(weight.shape).astype(np.float32) for path, weight in declared.items()
    }
    if not config.first_attention_norm:
        flat["encoder/layers/attention_norm/scale"][0] = 1
    return StoredModel(config, nest_params(flat), tokenizer, labels if "classifier" in heads else None)


@BY_TYPE
def test_settings_are_read_as_they_are_written(family: Family) -> None:
    config = config_like(family)
    settings = json.loads(json.dumps(family.settings_of(config) | {"pad_token_id": 1}))
    read = replace(config_of("hugging_face", Path("config.json"), settings, family), pooler=False)
    assert replace(read, model_type=family.model_type) == config
    assert family_of(read) is family


@BY_TYPE
def test_null_settings_are_those_of_the_library(family: Family) -> None:
    """Files of transformers 4 state what is absent as null."""
    names = ("classifier_dropout", "classifier_pooling", "rope_scaling", "id2label", "rope_parameters")
    settings = dict.fromkeys(names)
    written = family.settings_of(config_like(family)) | {"pad_token_id": 1}
    read = config_of("hugging_face", Path("config.json"), written | settings, family)
    assert read.hidden_dim == 16


@BY_TYPE
@pytest.mark.parametrize("head", ["head", "classifier"])
def test_folders_keep_the_type_and_every_bit(
    family: Family, head: str, shared_data: Path, tmp_path: Path
) -> None:
    tokenizer = Tokenizer.load(shared_data / "weights/sapiens-vh-roberta")
    model = model_of(replace(config_like(family), pooler=head == "classifier"), tokenizer, head)
    for folder in (tmp_path / "theirs", tmp_path / "ours"):
        folder.mkdir()
    hugging_face.write(model, tmp_path / "theirs")
    settings = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert settings["model_type"] == family.model_type
    ending = "ForMaskedLM" if head == "head" else "ForSequenceClassification"
    assert settings["architectures"] == [family.class_prefix + ending]
    first = hugging_face.read(tmp_path / "theirs").model
    assert first.labels == model.labels
    assert hugging_face.read_architecture(tmp_path / "theirs").config == first.config
    write_model_folder(tmp_path / "ours", first)
    second = read_model_folder(tmp_path / "ours")
    assert family_of(second.config) is family
    before, after = flatten_params(model.params), flatten_params(second.params)
    assert before.keys() == after.keys()
    for path, array in before.items():
        np.testing.assert_array_equal(after[path], array, err_msg=path)


def test_files_are_small() -> None:
    for file in (Path(hugging_face.__file__).parents[1] / "families").glob("*.py"):
        assert len(file.read_text().splitlines()) < 200, file.name


def test_a_config_without_a_type_is_of_the_nearest_family() -> None:
    without_segments = replace(SMALL, num_segments=0)
    assert family_of(without_segments).name == "DistilBERT"
    assert hugging_face.expressible(without_segments).pooler_kind == "relu"
    # Its pooler is a part of the classifier.
    assert hugging_face.poolers(without_segments, ["encoder", "head"]) == (False,)
    assert hugging_face.poolers(without_segments, ["encoder", "classifier"]) == (True, False)
    with pytest.raises(InputError, match=r"model_type = 'bart': must be one of 'bert', 'roberta'"):
        hugging_face.expressible(replace(SMALL, model_type="bart"))
    with pytest.raises(InputError, match=r"model.positions = 'learned': must be 'rotary', as in GTE"):
        hugging_face.expressible(replace(SMALL, model_type="gte"))


@pytest.mark.parametrize(
    ("model_type", "settings", "message"),
    [
        ("ernie", {"use_task_id": True}, "use_task_id = True is not supported: must be False"),
        ("electra", {"embedding_size": 8.5}, "embedding_size = 8.5: must be a whole number of at least 0"),
        ("albert", {"num_hidden_groups": 2}, "num_hidden_groups = 2 is not supported: must be 1"),
        ("albert", {"embedding_size": 16}, "embedding_size = hidden_size = 16 is not supported: must differ"),
        ("modernbert", {"norm_bias": True}, "norm_bias = True is not supported: must be False"),
        ("modernbert", {"rope_scaling": {"factor": 2}}, "rope_scaling is not supported: must be null"),
        (
            "modernbert",
            {"layer_types": ["full_attention", "full_attention", "sliding_attention"]},
            "layer_types: must be full_attention in every n-th layer from the first",
        ),
        (
            "modernbert",
            {"layer_types": ["full_attention"]},
            "layer_types: must be a list of num_hidden_layers",
        ),
        (
            "modernbert",
            {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}},
            "rope_parameters.full_attention.rope_type: must be 'default'",
        ),
        (
            "modernbert",
            {"rope_parameters": {"rope_theta": 1e6}},
            "rope_parameters: must have full_attention and",
        ),
        ("modernbert", {"rope_parameters": {"full_attention": 5}}, "full_attention: must be an object"),
        ("modernbert", {"embedding_dropout": 0.3}, "embedding_dropout = 0.3 is not supported"),
        ("esm", {"token_dropout": "no"}, "token_dropout = 'no': must be true or false"),
        ("esm", {"position_embedding_type": "relative"}, "must be 'rotary' or 'absolute'"),
        ("esm", {"mask_token_id": None}, "mask_token_id = None: must be a whole number"),
        ("esm", {"is_folding_model": True}, "is_folding_model = True is not supported"),
        ("mpnet", {"relative_attention_num_buckets": 64}, "relative_attention_num_buckets = 64"),
        ("mpnet", {"pad_token_id": 3}, "model.position_offset = 4: must be 2, as in MPNet"),
        ("modernbert", {"classifier_pooling": "late"}, "classifier_pooling = 'late' is not supported"),
        ("modernbert", {"classifier_pooling": ["cls"]}, "classifier_pooling = ['cls'] is not supported"),
        ("eurobert", {"head_dim": 64}, "head_dim = 64 is not supported: must be 4"),
        (
            "eurobert",
            {"num_key_value_heads": 3},
            "num_key_value_heads = 3: must be None or a smaller divisor",
        ),
        ("eurobert", {"tie_word_embeddings": True}, "head_transform = False: must be True with"),
        ("gte", {"rope_parameters": {"rope_type": "ntk"}}, "rope_parameters: must have rope_theta"),
        ("gte", {"num_attention_heads": 0, "head_dim": 4}, "head_dim = 4 is not supported: must be 16"),
        ("gte", {"hidden_size": "wide", "head_dim": 4}, "hidden_size = 'wide': must be a whole number"),
        ("nomic_bert", {"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported: must be 'silu'"),
        (
            "nomic_bert",
            {"rotary_emb_fraction": 0.5},
            "rotary_emb_fraction = 0.5 is not supported: must be 1.0",
        ),
        ("nomic_bert", {"rotary_scaling_factor": 2.0}, "rotary_scaling_factor = 2.0 is not supported"),
        ("nomic_bert", {"prenorm": True}, "prenorm = True is not supported: must be False"),
        ("distilbert", {"dim": "wide"}, "hidden_dim = 'wide'"),
    ],
)
def test_what_is_not_supported_is_named(model_type: str, settings: dict[str, Any], message: str) -> None:
    family = next(family for family in FAMILIES if family.model_type == model_type)
    written = family.settings_of(config_like(family)) | {"pad_token_id": 1} | settings
    with pytest.raises(InputError, match="config.json: .*" + message.replace("(", r"\(").replace("[", r"\[")):
        config_of("hugging_face", Path("config.json"), written, family)


def test_other_names_of_settings_are_not_ignored() -> None:
    """Those of NomicBERT's own code, and those that transformers takes for DistilBERT's."""
    nomic = {
        "n_embd": 16,
        "n_layer": 3,
        "n_head": 4,
        "n_inner": 24,
        "n_positions": 20,
        "rotary_emb_base": 500,
    }
    nomic |= {"layer_norm_epsilon": 1e-6, "prenorm": False, "rotary_scaling_factor": None, "vocab_size": 25}
    distil = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "hidden_dim": 24}
    for model_type, settings in (("nomic_bert", nomic), ("distilbert", distil)):
        family = next(family for family in FAMILIES if family.model_type == model_type)
        read = config_of("hugging_face", Path("config.json"), settings, family)
        assert (read.hidden_dim, read.num_layers, read.num_heads, read.intermediate_dim) == (16, 3, 4, 24)
        if model_type == "nomic_bert":
            assert (read.rotary_base, read.layer_norm_epsilon, read.max_sequence_length) == (500.0, 1e-6, 20)


def test_a_type_that_is_no_name_is_one_line() -> None:
    for model_type in (["bert"], {"a": "bert"}, None, 5):
        with pytest.raises(InputError, match=r"config\.json: model_type .* is not supported"):
            family_of_settings(Path("config.json"), {"model_type": model_type}, [])


def test_without_a_type_the_class_decides(shared_data: Path, tmp_path: Path) -> None:
    """The prefix of one family's classes may begin with that of another's."""
    folder = shutil.copytree(shared_data / "weights/sapiens-vh-roberta", tmp_path / "model")
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755)
    config = json.loads((folder / "config.json").read_text())
    del config["model_type"]
    for architecture, problem in (
        ("RobertaPreLayerNormForMaskedLM", "not RoBERTa-PreLayerNorm's"),
        ("BertGenerationEncoder", "architecture BertGenerationEncoder is not supported"),
    ):
        (folder / "config.json").write_text(json.dumps(config | {"architectures": [architecture]}))
        with pytest.raises(InputError, match=problem):
            hugging_face.read(folder)
