"""Families of encoders beside transformers: random weights in both directions, texts, pairs and real tokenizers."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.numpy import load_file

from mlm_jax.config.files import load_config
from mlm_jax.families.family import Family
from mlm_jax.families.registry import FAMILIES, config_of
from mlm_jax.formats import hugging_face
from mlm_jax.model.bert import count_parameters
from mlm_jax.store import conversion
from mlm_jax.store.conversion import Request
from mlm_jax.store.reference_outputs import Reference
from mlm_jax.text.tokenizer import Tokenizer
from mlm_jax.use.labeled_batches import labeled_rows
from mlm_jax.use.masked_lm import MaskedLM
from mlm_jax.use.text_classifier import TextClassifier
from tests.formats.test_hugging_face import assert_same_tensors
from tests.peers.test_hugging_face import there_and_back

IN_THIS_PROCESS = pytest.mark.usefixtures("transformers_in_this_process")
pytestmark = [pytest.mark.peers, IN_THIS_PROCESS]


@pytest.fixture
def transformers_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child process, as in test_hugging_face.py, would import it anew for every folder."""

    def ask(name: str, folder: Path, batch: Any) -> Reference:
        return Reference(f"transformers {transformers.__version__}", hugging_face.outputs(folder, batch))

    monkeypatch.setattr(conversion, "ask_library", ask)


CONFIGS = Path(__file__).parents[2] / "configs"
SIZES = {
    "vocab_size": 25,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 42,
    "pad_token_id": 1,
}
ROBERTA = SIZES | {"type_vocab_size": 1, "layer_norm_eps": 1e-5}
DISTILBERT = {
    "vocab_size": 25,
    "dim": 32,
    "n_layers": 3,
    "n_heads": 4,
    "hidden_dim": 48,
    "max_position_embeddings": 40,
    "pad_token_id": 1,
}
ROTARY = {"position_embedding_type": "rotary"}
ESM_1B = {"position_embedding_type": "absolute", "emb_layer_norm_before": True}
GLOBAL = {"layer_types": ["full_attention"] * 3}
SHAPES = {
    "Roberta": ROBERTA,
    "DistilBert": DISTILBERT,
    "XLMRoberta": ROBERTA,
    "Camembert": ROBERTA,
    "Data2VecText": ROBERTA,
    "RobertaPreLayerNorm": ROBERTA,
    "XLMRobertaXL": ROBERTA,
    "Ernie": SIZES,
    "MegatronBert": SIZES,
    "Electra": SIZES | {"embedding_size": 16},
    "Albert": SIZES | {"embedding_size": 16},
    "ModernBert": SIZES | {"local_attention": 8, "global_attn_every_n_layers": 2},
    "Esm": SIZES | {"mask_token_id": 24, "token_dropout": True},
    "MPNet": SIZES | {"max_position_embeddings": 202},
    "NomicBert": SIZES,
    "Gte": SIZES | {"type_vocab_size": 1},
    "JinaEmbeddingsV3": SIZES | {"type_vocab_size": 1},
    "EuroBert": SIZES | {"num_key_value_heads": 2, "tie_word_embeddings": False},
}
CASES = [
    ("RobertaForMaskedLM", {}),
    ("RobertaForMaskedLM", {"tie_word_embeddings": False}),
    ("RobertaForMaskedLM", {"hidden_act": "gelu_new", "type_vocab_size": 2}),
    ("RobertaForSequenceClassification", {"num_labels": 3}),
    ("RobertaForTokenClassification", {"num_labels": 3}),
    ("RobertaForQuestionAnswering", {}),
    ("RobertaModel", {}),
    ("DistilBertForMaskedLM", {}),
    ("DistilBertForMaskedLM", {"activation": "gelu_new", "tie_word_embeddings": False}),
    ("DistilBertForSequenceClassification", {"num_labels": 3}),
    ("DistilBertForTokenClassification", {"num_labels": 3}),
    ("DistilBertForQuestionAnswering", {}),
    ("DistilBertModel", {}),
    ("XLMRobertaForMaskedLM", {}),
    ("CamembertForMaskedLM", {}),
    ("Data2VecTextForMaskedLM", {}),
    ("RobertaPreLayerNormForMaskedLM", {}),
    ("RobertaPreLayerNormForSequenceClassification", {"num_labels": 3}),
    ("XLMRobertaXLForMaskedLM", {}),
    ("ErnieForMaskedLM", {}),
    ("ErnieForPreTraining", {}),
    ("MegatronBertForMaskedLM", {}),
    ("MegatronBertModel", {}),
    ("ElectraForMaskedLM", {}),
    ("ElectraForMaskedLM", {"embedding_size": 32, "hidden_act": "gelu_new"}),
    ("ElectraForSequenceClassification", {"num_labels": 3, "hidden_act": "gelu_new"}),
    ("ElectraForTokenClassification", {"num_labels": 3}),
    ("ElectraModel", {}),
    ("AlbertForMaskedLM", {}),
    ("AlbertForPreTraining", {}),
    ("AlbertForSequenceClassification", {"num_labels": 3}),
    ("AlbertModel", {}),
    ("ModernBertForMaskedLM", {}),
    ("ModernBertForMaskedLM", GLOBAL | {"tie_word_embeddings": False}),
    ("ModernBertForSequenceClassification", {"num_labels": 3}),
    (
        "ModernBertForSequenceClassification",
        {"num_labels": 3, "classifier_pooling": "mean", "classifier_activation": "gelu_new"},
    ),
    ("ModernBertModel", {}),
    ("EsmForMaskedLM", ROTARY),
    ("EsmForMaskedLM", ESM_1B),
    ("EsmModel", ROTARY | {"token_dropout": False}),
    ("EsmForSequenceClassification", ROTARY | {"num_labels": 3}),
    ("EsmForTokenClassification", ROTARY | {"num_labels": 3}),
    ("MPNetForMaskedLM", {}),
    ("MPNetForSequenceClassification", {"num_labels": 3}),
    ("MPNetForQuestionAnswering", {}),
    ("MPNetModel", {}),
    ("EuroBertForMaskedLM", {}),
    ("EuroBertForMaskedLM", {"num_key_value_heads": 4}),
    ("EuroBertForSequenceClassification", {"num_labels": 3}),
    ("EuroBertForSequenceClassification", {"num_labels": 3, "classifier_pooling": "mean"}),
    ("EuroBertForSequenceClassification", {"num_labels": 3, "classifier_pooling": "bos"}),
    ("EuroBertForTokenClassification", {"num_labels": 3}),
    ("EuroBertModel", {}),
    ("NomicBertForMaskedLM", {}),
    ("NomicBertForSequenceClassification", {"num_labels": 3}),
    ("GteForMaskedLM", {}),
    ("GteForMaskedLM", {"type_vocab_size": 0, "tie_word_embeddings": False}),
    ("GteForTokenClassification", {"num_labels": 3}),
    ("JinaEmbeddingsV3ForMaskedLM", {}),
    ("JinaEmbeddingsV3ForSequenceClassification", {"num_labels": 3}),
]


def published(folder: Path, shared_data: Path, architecture: str, **settings: Any) -> Path:
    """Makes a folder with `save_pretrained`, with random weights of realistic spread and the tokenizer of residues."""
    torch.manual_seed(0)
    family = family_of(architecture)
    config = getattr(transformers, f"{family}Config")
    shape = SHAPES[family] | settings
    model = getattr(transformers, architecture)(config(**shape))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            is_scale = name.endswith("weight") and "norm" in name.split(".")[-2].lower()
            spread = 0.3 if is_scale else 0.2
            weight.copy_(torch.randn_like(weight) * spread + is_scale)
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(shared_data / "weights/sapiens-vh-roberta" / file, folder / file)
    return folder


def family_of(architecture: str) -> str:
    """Returns the beginning of the names of the family's classes."""
    return re.match("(.*?)(Model|For)", architecture)[1]


# The first of each family is tested with every change, all of them before a release; so is the first of each kind of
# pooler that differs from BERT's.
_FAMILIES = [family_of(architecture) for architecture, _ in CASES]
_FIRST = [_FAMILIES.index(family) for family in dict.fromkeys(_FAMILIES)]
_FIRST += [
    [architecture for architecture, _ in CASES].index(f"{family}ForSequenceClassification")
    for family in ("DistilBert", "ModernBert", "EuroBert")
]
TIERED = [
    pytest.param(*case, marks=() if index in _FIRST else pytest.mark.release)
    for index, case in enumerate(CASES)
]


@pytest.mark.parametrize(("architecture", "settings"), TIERED)
def test_both_directions(
    architecture: str, settings: dict[str, Any], shared_data: Path, tmp_path: Path
) -> None:
    source = published(tmp_path / "source", shared_data, architecture, **settings)
    # ESM's encoder has a head that predicts contacts, which is kept.
    request = Request(backbone_only=architecture.endswith("Model") and "Esm" not in architecture)
    back = there_and_back(source, tmp_path, request)
    if "tie_word_embeddings" not in settings:
        before, after = (
            {
                # transformers saves ESM's norms with the names of TensorFlow, and once what all layers share.
                name.replace(".gamma", ".weight").replace(".beta", ".bias"): array
                for name, array in load_file(folder / "model.safetensors").items()
                if "inv_freq" not in name
            }
            for folder in (source, back)
        )
        assert_same_tensors(after, before)
    _, report = getattr(transformers, architecture).from_pretrained(
        tmp_path / "back", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert json.loads((tmp_path / "back" / "config.json").read_text())["architectures"] == [architecture]


@pytest.mark.parametrize("family", ["Roberta", "DistilBert", "ModernBert", "EuroBert"])
def test_texts_and_pairs_have_the_logits_of_transformers(
    family: str, shared_data: Path, tmp_path: Path
) -> None:
    """RoBERTa's positions count from the padding id + 1, so padded rows and pairs are compared with ids alone."""
    settings = {"num_labels": 3} | ({"classifier_pooling": "mean"} if family == "ModernBert" else {})
    source = published(tmp_path / "source", shared_data, f"{family}ForSequenceClassification", **settings)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(source).eval()
    texts = [("QVQL", "WMG"), "EVQLVESGGG", ("A", "ACDEFGHIKLMNPQRSTVWY"), "Q"]
    ours = TextClassifier.from_preset(source)
    pairs = [text if isinstance(text, tuple) else (text, None) for text in texts]
    batch = tokenizer([a for a, _ in pairs], padding=True, return_tensors="pt")
    single = [tokenizer(a, b, return_tensors="pt") for a, b in pairs]
    rows = labeled_rows(texts, ours.config, ours.tokenizer, None)
    for (token_ids, _), theirs in zip(rows, single, strict=True):
        assert token_ids.tolist() == theirs["input_ids"][0].tolist()
    with torch.no_grad():
        expected = torch.stack([model(**one).logits[0].softmax(-1) for one in single]).numpy()
        padded = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.softmax(
            -1
        )
    np.testing.assert_allclose(ours.predict_probabilities(texts), expected, atol=1e-5)
    alone = ours.predict_probabilities([a for a, _ in pairs])
    np.testing.assert_allclose(alone, padded.numpy(), atol=1e-5)


def test_masked_words_are_filled_as_by_the_pipeline(shared_data: Path) -> None:
    folder = shared_data / "weights/sapiens-vh-roberta"
    pipeline = transformers.pipeline("fill-mask", str(folder), top_k=5)
    text = "QVQLVQ<mask>GAEVKKPGASVKVSCKAS"
    ours = MaskedLM.from_preset(folder).fill_mask(text, top_k=5)
    for mine, theirs in zip(ours, pipeline(text), strict=True):
        assert (mine["token"], mine["token_str"]) == (theirs["token"], theirs["token_str"])
        assert mine["score"] == pytest.approx(theirs["score"], abs=1e-5)


TEXTS = [
    "Hello world",
    " Hello  world\n\nfoo",
    "The <mask> is",
    "naïve café 東京 😀",
    "</s> a <s> x",
    "",
    "a" * 300,
]
TEXTS += [
    "The<mask>x <mask>",
    "\t tab",
    "don't I'm we'll",
    " <mask>",
    "\u200b\u0301e",
    "a\u00a0b\r\nc",
    "�\x00\x7f",
]


@pytest.mark.parametrize("files", [["tokenizer.json"], ["vocab.json", "merges.txt"]])
@pytest.mark.parametrize("settings", [None, {}, {"add_prefix_space": True}])
def test_byte_level_ids_are_those_of_transformers(
    files: list[str], settings: dict[str, Any] | None, shared_data: Path, tmp_path: Path
) -> None:
    source = shared_data / "tokenizers/roberta-base"
    for file in [*files, "config.json"]:
        shutil.copyfile(source / file, tmp_path / file)
    if settings is not None:
        stated = json.loads((source / "tokenizer_config.json").read_text())
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(stated | settings))
    random = np.random.RandomState(0)
    ranges = [(32, 127), (0xA0, 0x3000), (0x4E00, 0x5000), (0x1F300, 0x1F600), (32, 33)]
    texts = TEXTS + [
        "".join(chr(random.randint(*ranges[random.randint(5)])) for _ in range(random.randint(1, 60)))
        for _ in range(500)
    ]
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path), Tokenizer.load(tmp_path)
    for text in texts:
        expected = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text, parse_special_tokens=True).tolist() == expected, text
        expected = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert ours.encode(text).tolist() == expected, text
    ours.save(tmp_path / "saved")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again("a b", "c")["input_ids"] == theirs("a b", "c")["input_ids"]
    assert Tokenizer.load(tmp_path / "saved").fingerprint == ours.fingerprint


def test_parameter_counts_equal_transformers() -> None:
    with torch.device("meta"):
        their_roberta = transformers.RobertaForMaskedLM(
            transformers.RobertaConfig(vocab_size=50_265, max_position_embeddings=514, type_vocab_size=1)
        )
        their_modernbert = transformers.ModernBertForMaskedLM(transformers.ModernBertConfig())
    shapes = (load_config(CONFIGS / f"{name}_base.py").model for name in ("roberta", "modernbert"))
    ours = (count_parameters(shape, pooler=False, mlm_head=True) for shape in shapes)
    # Its config has no position before the first, because its tokenizer is BERT's.
    assert next(ours) == sum(weight.numel() for weight in their_roberta.parameters()) - 2 * 768
    # Its dead row of the first attention norm is no weight of transformers'.
    assert next(ours) == sum(weight.numel() for weight in their_modernbert.parameters()) + 768


def test_the_page_lists_every_model_type_and_what_is_read() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    page = (Path(__file__).parents[2] / "docs" / "families.md").read_text()
    rows = [line.split("|")[1:3] for line in page.splitlines() if line.startswith("| `")]
    listed = {name: read.strip() for names, read in rows for name in re.findall("`(.*?)`", names)}
    assert listed.keys() == MODEL_FOR_MASKED_LM_MAPPING_NAMES.keys()
    ours = {family.model_type for family in FAMILIES}
    assert {name for name, read in listed.items() if read != "no"} == ours


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_settings_that_a_file_lacks_are_those_of_transformers(family: Family) -> None:
    stated = {"pad_token_id": 1, "mask_token_id": 4}
    theirs = getattr(transformers, f"{family.class_prefix}Config")(**stated).to_dict()
    theirs["vocab_size"] = theirs["vocab_size"] or 30_522
    read = [config_of("hugging_face", Path("config.json"), each, family) for each in (stated, theirs)]
    for name in ("dropout_rate", "attention_dropout_rate", "initializer_stddev"):
        read = [replace(config, **{name: 0.5}) for config in read]
    assert read[0] == read[1]
