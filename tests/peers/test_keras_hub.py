"""Conversions compared with KerasHub."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("keras_hub")
h5py = pytest.importorskip("h5py")

from mlm_jax.store.conversion import Request, convert
from tests.formats.folders import hugging_face_folder
from tests.formats.test_keras_hub import tensors

pytestmark = pytest.mark.peers

# Runs in a child process, because Keras chooses its backend when it is imported.
PUBLISH = """
import sys
import keras_hub, numpy
folder, layers, head = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "head"
special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
tokenizer = keras_hub.models.BertTokenizer(vocabulary=special + [f"w{i}" for i in range(206)], lowercase=True)
backbone = keras_hub.models.BertBackbone(
    vocabulary_size=211, num_layers=layers, num_heads=2, hidden_dim=64, intermediate_dim=256, max_sequence_length=40)
preprocessor = keras_hub.models.BertMaskedLMPreprocessor(tokenizer, sequence_length=32)
model = keras_hub.models.BertMaskedLM(backbone, preprocessor=preprocessor) if head else backbone
random = numpy.random.RandomState(0)
for weight in model.weights:
    weight.assign(random.standard_normal(weight.shape) * 0.15 + ("gamma" in weight.path))
model.save_to_preset(folder)
if not head:
    tokenizer.save_to_preset(folder)
"""
# Publishes a classifier, and compares it with ours and with what KerasHub makes of the folder that we write.
CLASSIFY = """
import sys
from pathlib import Path
import keras_hub, numpy
special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
tokenizer = keras_hub.models.BertTokenizer(vocabulary=special + [f"w{i}" for i in range(190)], lowercase=True)
backbone = keras_hub.models.BertBackbone(
    vocabulary_size=211, num_layers=2, num_heads=2, hidden_dim=64, intermediate_dim=128, max_sequence_length=40)
preprocessor = keras_hub.models.BertTextClassifierPreprocessor(tokenizer, sequence_length=32)
model = keras_hub.models.BertTextClassifier(backbone, 3, preprocessor=preprocessor, activation="softmax")
random = numpy.random.RandomState(0)
for weight in model.weights:
    weight.assign(random.standard_normal(weight.shape) * 0.15 + ("gamma" in weight.path))
source, back = Path(sys.argv[1]), Path(sys.argv[2])
model.save_to_preset(source)
from mlm_jax.formats import keras_hub as ours
from mlm_jax.store.reference_outputs import fixed_batch, our_outputs
reading = ours.read(source)
batch = fixed_batch(reading.model.config)
back.mkdir()
ours.write(reading.model, back)
logits = our_outputs(reading.model, batch)
assert logits.shape == (3, 3) and numpy.abs(logits).max() > 0.5
for folder in (source, back):
    assert numpy.abs(ours.outputs(folder, batch) - logits).max() < 1e-5, folder
inputs = {name: batch[name] for name in ("token_ids", "padding_mask", "segment_ids")}
chances = numpy.exp(logits) / numpy.exp(logits).sum(1, keepdims=True)
assert numpy.abs(numpy.asarray(model(inputs)) - chances).max() < 1e-5
loaded = keras_hub.models.TextClassifier.from_preset(str(back))
assert loaded.predict(["w5 w12"], verbose=0).shape == (1, 3)
"""
ASK = """
import sys
import keras_hub, numpy
lm = keras_hub.models.BertMaskedLM.from_preset(sys.argv[1])
print(lm.preprocessor.tokenizer.tokenize("w5 W12,w100 nothing").tolist())
print(float(numpy.abs(numpy.asarray(lm.get_layer("mlm_head")._bias)).sum()))
print(lm.backbone.get_layer("embeddings_layer_norm").epsilon, lm.get_layer("mlm_head").layer_norm_epsilon)
"""


def run(code: str, *arguments: object) -> str:
    variables = os.environ | {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    ended = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.parametrize(
    ("layers", "head"),
    [
        (2, "head"),
        *(pytest.param(*case, marks=pytest.mark.release) for case in ((1, "backbone"), (12, "head"))),
    ],
)
def test_both_directions(layers: int, head: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    run(PUBLISH, source, layers, head)
    request = Request(backbone_only=head == "backbone")
    there = convert(source, tmp_path / "ours", "mlm_jax", request)
    back = convert(tmp_path / "ours", tmp_path / "back", "keras_hub", request)
    for comparison in (there["comparisons"]["source"], back["comparisons"]["target"]):
        assert comparison["library"].startswith("keras-hub ")
        assert comparison["max_difference"] <= 1e-5
        assert comparison["largest_output"] > 0.5
    given = {name: bits for name, bits in tensors(source).items() if "/optimizer/" not in name}
    assert tensors(tmp_path / "back") == given


def test_keras_hub_loads_a_model_converted_from_another_library(tmp_path: Path) -> None:
    source = hugging_face_folder(tmp_path / "source", "BertForPreTraining")
    certificate = convert(source, tmp_path / "out", "keras_hub", Request(change_conventions=True))
    assert certificate["comparisons"]["target"]["max_difference"] <= 1e-5
    assert certificate["comparisons"]["change"]["max_difference"] > 1e-4
    ids, bias, epsilons = run(ASK, tmp_path / "out").splitlines()[-3:]
    from mlm_jax.formats import keras_hub

    model = keras_hub.read(tmp_path / "out").model
    assert ids == str(model.tokenizer.encode("w5 W12,w100 nothing").tolist())
    assert float(bias) == pytest.approx(float(np.abs(model.params["head"]["bias"]).sum()), rel=1e-5)
    config = model.config
    assert epsilons == f"{config.layer_norm_epsilon} {config.head_layer_norm_epsilon}"


def test_a_classifier_in_both_directions(tmp_path: Path) -> None:
    run(CLASSIFY, tmp_path / "source", tmp_path / "back")
    given = {name: bits for name, bits in tensors(tmp_path / "source").items() if "/optimizer/" not in name}
    assert tensors(tmp_path / "back") == given
