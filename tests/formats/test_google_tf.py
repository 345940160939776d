"""Google's config. tests/peers compares with TensorFlow and Google's own code."""

import json
from pathlib import Path

import pytest

from mlm_jax.errors import InputError
from mlm_jax.formats import google_tf
from mlm_jax.store import conversion
from mlm_jax.store.conversion import Request, convert
from mlm_jax.store.reference_outputs import Reference
from tests.formats.folders import hugging_face_folder, write_vocabulary

SETTINGS = {"vocab_size": 211, "hidden_size": 64, "num_attention_heads": 2, "hidden_act": "gelu"}


@pytest.mark.parametrize(
    ("extra", "activation"), [({}, "gelu_tanh"), ({"gelu": "tanh"}, "gelu_tanh"), ({"gelu": "erf"}, "gelu")]
)
def test_gelu_is_tanh_unless_our_key_says_otherwise(
    extra: dict[str, str], activation: str, tmp_path: Path
) -> None:
    (tmp_path / "bert_config.json").write_text(json.dumps(SETTINGS | extra))
    write_vocabulary(tmp_path, 211)
    found = google_tf.read_architecture(tmp_path)
    config = found.config
    assert (config.activation, config.head_activation) == (activation, activation)
    assert (config.vocabulary_size, config.hidden_dim, config.num_heads) == (211, 64, 2)
    assert found.tokenizer.vocabulary_size == 211


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"hidden_act": "relu"}, "hidden_act 'relu'.*: must be gelu$"),
        ({"gelu": "quick"}, "gelu 'quick'.*: must be erf or tanh"),
    ],
)
def test_other_activations_are_rejected(wrong: dict[str, str], named: str, tmp_path: Path) -> None:
    (tmp_path / "bert_config.json").write_text(json.dumps(SETTINGS | wrong))
    with pytest.raises(InputError, match=named):
        google_tf.read_architecture(tmp_path)


def test_tensors_that_googles_code_cannot_read_are_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion, "ask_library", lambda name, *_: Reference(name, None, "not asked"))
    source = hugging_face_folder(tmp_path / "source", "BertForPreTraining")
    with pytest.raises(
        InputError, match=r"google_tf cannot express .* of bfloat16: .*--dtype float32 converts"
    ):
        convert(source, tmp_path / "out", "google_tf", Request(dtype="bfloat16"))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
