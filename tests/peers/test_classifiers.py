"""Classifiers of every problem type compared with transformers: losses, gradients, predictions, conversion."""

import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from mlm_jax.errors import InputError
from mlm_jax.store import conversion
from mlm_jax.store.conversion import Request, convert
from mlm_jax.store.reference_outputs import Reference
from mlm_jax.use.masked_lm import MaskedLM
from mlm_jax.use.text_classifier import TextClassifier
from tests.peers.test_hugging_face import published

pytestmark = pytest.mark.peers

TEXTS = ["w1 w2 w3", "w9", "w20 w21 w22 w23 w24", "w7 w8"]
SETTINGS: dict[str, tuple[dict[str, Any], Any]] = {
    "single": ({"num_labels": 3, "problem_type": "single_label_classification"}, [2, 0, 1, 1]),
    "single, not stated": ({"num_labels": 3}, [2, 0, 1, 1]),
    "multi": (
        {"num_labels": 3, "problem_type": "multi_label_classification"},
        [[1.0, 0, 1], [0, 0, 0], [0, 0.25, 1], [1, 1, 1]],
    ),
    "one probability": ({"num_labels": 1, "problem_type": "multi_label_classification"}, [1.0, 0, 0.75, 1]),
    "value": ({"num_labels": 1, "problem_type": "regression"}, [0.4, -2.8, 4.99, 0]),
    "values": (
        {"num_labels": 2, "problem_type": "regression"},
        [[0.4, 1], [-2.8, 0], [4.99, 7.5], [0, 0]],
    ),
    # transformers predicts the sigmoid, and trains as if it were the value; we train the probability.
    "one, not stated": ({"num_labels": 1}, None),
}


@pytest.fixture
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    settings = {"id2label": {index: f"name {index}" for index in range(request.param["num_labels"])}}
    settings |= {name: value for name, value in request.param.items() if name != "num_labels"}
    published(tmp_path / "model", "BertForSequenceClassification", **settings)
    (tmp_path / "model" / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    return tmp_path / "model"


@pytest.fixture(autouse=True)
def _libraries_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Conversions would ask each library in a process of its own, which takes long."""
    monkeypatch.setattr(conversion, "ask_library", lambda name, *_: Reference(name, None, "not asked"))


def cases(with_targets: bool) -> Any:
    chosen = {name: case for name, case in SETTINGS.items() if case[1] is not None or not with_targets}
    values = [case if with_targets else case[:1] for case in chosen.values()]
    names = ("folder", "targets") if with_targets else ("folder",)
    return pytest.mark.parametrize(names, values, ids=list(chosen), indirect=["folder"])


@cases(with_targets=True)
def test_losses_and_gradients(folder: Path, targets: Any) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = transformers.BertForSequenceClassification.from_pretrained(folder).eval()
    labels = torch.tensor(targets)
    labels = labels if labels.dtype == torch.long or labels.ndim == 2 else labels[:, None]
    output = theirs(**tokenizer(TEXTS, return_tensors="pt", padding=True), labels=labels)
    output.loss.backward()
    ours = TextClassifier.from_preset(folder, dropout_rate=0.0)
    assert ours.evaluate(TEXTS, targets).loss == pytest.approx(output.loss.item(), rel=1e-4)
    (batch,) = ours._batches(ours._rows(TEXTS, None), ours._targets(targets, 4), 4, (0, 0))

    loss = jax.jit(lambda params, batch: ours._summed_loss(params, batch, None).loss / 4)
    gradient = jax.grad(loss)(ours.params, batch)
    for found, weight in (
        (gradient["classifier"]["kernel"].T, theirs.classifier.weight),
        (gradient["encoder"]["pooler"]["kernel"].T, theirs.bert.pooler.dense.weight),
        (gradient["encoder"]["embeddings"]["token"], theirs.bert.embeddings.word_embeddings.weight),
    ):
        expected = weight.grad.numpy().copy()
        if expected.shape == ours.params["encoder"]["embeddings"]["token"].shape:
            expected[0] = gradient["encoder"]["embeddings"]["token"][0]
        np.testing.assert_allclose(found, expected, atol=1e-5)


@cases(with_targets=False)
def test_predictions_equal_the_pipeline_and_conversion_keeps_the_type(folder: Path, tmp_path: Path) -> None:
    pipeline = transformers.pipeline("text-classification", model=str(folder), top_k=None)
    ours = TextClassifier.from_preset(folder)
    expected = [{found["label"]: found["score"] for found in each} for each in pipeline(TEXTS)]
    scores = ours.predict(TEXTS) if ours.problem == "regression" else ours.predict_probabilities(TEXTS)
    for row, wanted in zip(scores.reshape(4, -1), expected, strict=True):
        assert dict(zip(ours.labels, row, strict=True)) == pytest.approx(wanted, abs=1e-5)
    ours.save(tmp_path / "saved")
    again = TextClassifier.from_preset(tmp_path / "saved")
    assert (again.labels, again.problem_type) == (ours.labels, ours.problem_type)
    convert(tmp_path / "saved", tmp_path / "back", "hugging_face")
    before, after = (transformers.AutoConfig.from_pretrained(each) for each in (folder, tmp_path / "back"))
    for name in ("problem_type", "num_labels", "id2label"):
        assert getattr(before, name) == getattr(after, name), name
    assert (
        "problem_type" not in json.loads((tmp_path / "back" / "config.json").read_text())
        or after.problem_type
    )


@pytest.mark.parametrize("pooling", ["mean", "max", "cls"])
def test_pooling_is_that_of_sentence_transformers(tmp_path: Path, pooling: Any) -> None:
    """The formulas are those of `sentence_transformers.models.Pooling`, on a padded batch."""
    published(tmp_path / "raw", "BertModel")
    ours = MaskedLM.from_preset(tmp_path / "raw")
    model = transformers.BertModel.from_pretrained(tmp_path / "raw")
    rows = ours.encode([*TEXTS, ""])
    ids, mask = np.zeros((2, 5, max(map(len, rows))), int)
    for index, row in enumerate(rows):
        ids[index, : len(row)], mask[index, : len(row)] = row, 1
    with torch.no_grad():
        output = model(torch.tensor(ids), attention_mask=torch.tensor(mask), output_hidden_states=True)
    found = ours.features([*TEXTS, ""], layers=[-1, -2], pooling=pooling)
    for place, layer in enumerate([-1, -2]):
        states = output.hidden_states[layer]
        real = torch.tensor(mask)[..., None].expand(states.size()).float()
        if pooling == "mean":
            expected = (states * real).sum(1) / real.sum(1).clamp(min=1e-9)
        elif pooling == "max":
            expected = states.masked_fill(real == 0, -1e9).max(1)[0]
        else:
            expected = states[:, 0]
        np.testing.assert_allclose(found[:, place], expected, atol=1e-5)


def test_other_formats_refuse_a_type_that_they_cannot_express(tmp_path: Path) -> None:
    source = published(tmp_path / "raw", "BertForSequenceClassification", num_labels=1)
    ours = TextClassifier.from_preset(source, problem_type="regression")
    ours.save(tmp_path / "saved")
    convert(tmp_path / "saved", tmp_path / "encoder", "hugging_face", Request(backbone_only=True))
    assert (tmp_path / "encoder" / "model.safetensors").is_file()
    pytest.importorskip("tensorflow")
    with pytest.raises(InputError, match="google_tf cannot express problem_type = 'regression'"):
        convert(tmp_path / "saved", tmp_path / "google", "google_tf", Request(change_conventions=True))
    assert not (tmp_path / "google").exists()
