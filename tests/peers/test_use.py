"""Filled masks, features and classification compared with transformers."""

import os
from pathlib import Path

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from mlm_jax.store.conversion import convert
from mlm_jax.use.masked_lm import MaskedLM
from mlm_jax.use.text_classifier import TextClassifier
from tests.peers.test_hugging_face import published

pytestmark = pytest.mark.peers

TEXTS = ["w1 [MASK] w3", "w20 w21 w22 w23 [MASK]", "[MASK] w5"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    published(tmp_path / "raw", "BertForMaskedLM")
    # transformers needs a tokenizer_config.json.
    convert(tmp_path / "raw", tmp_path / "model", "hugging_face")
    return tmp_path / "model"


def test_fill_mask_equals_the_pipeline(folder: Path) -> None:
    pipeline = transformers.pipeline("fill-mask", model=str(folder), top_k=5)
    ours = MaskedLM.from_preset(folder).fill_mask(TEXTS)
    for given, found in zip(pipeline(TEXTS), ours, strict=True):
        # The pipeline also returns special tokens.
        theirs = [answer for answer in given if not answer["token_str"].startswith("[")]
        for answer, candidate in zip(theirs, found, strict=False):
            assert candidate["token"] == answer["token"]
            assert candidate["token_str"] == answer["token_str"]
            assert candidate["sequence"] == answer["sequence"]
            assert candidate["score"] == pytest.approx(answer["score"], rel=1e-4)


@pytest.mark.parametrize("layer", [*(pytest.param(layer, marks=pytest.mark.release) for layer in (0, 1)), -1])
def test_features_are_the_hidden_states(folder: Path, layer: int) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.BertModel.from_pretrained(folder, attn_implementation="eager")
    ours = MaskedLM.from_preset(folder).features(["w1 w2 w3", "w9"], layers=layer)
    for text, features in zip(("w1 w2 w3", "w9"), ours, strict=True):
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states
        np.testing.assert_allclose(features, states[layer][0], atol=1e-5)


def test_classifier_probabilities_equal_transformers(tmp_path: Path) -> None:
    source = published(tmp_path / "raw", "BertForSequenceClassification", num_labels=3)
    convert(source, tmp_path / "ours", "mlm_jax")
    convert(tmp_path / "ours", tmp_path / "model", "hugging_face")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    model = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    classifier = TextClassifier.from_preset(tmp_path / "ours")
    assert classifier.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    texts = ["w1 w2 w3", "w9", ("w1 w2", "w7 w8 w9")]
    for text, found in zip(texts, classifier.predict_probabilities(texts), strict=True):
        pair = (text,) if isinstance(text, str) else text
        with torch.no_grad():
            logits = model(**tokenizer(*pair, return_tensors="pt")).logits
        np.testing.assert_allclose(found, torch.softmax(logits, -1)[0], atol=1e-5)
