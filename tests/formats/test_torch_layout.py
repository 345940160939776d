"""Names of weights in transformers' classes of three libraries: some of those that transformers 4.57.6 wrote."""

from pathlib import Path

import numpy as np
import pytest

from mlm_jax.errors import InputError
from mlm_jax.formats.name_table import Tensor
from mlm_jax.formats.torch_layout import as_in_torch, flax_path, keras_path, torch_name

NAMES = [
    # Flax, Keras in a file of safetensors, torch.
    (
        "bert/encoder/layer/0/attention/self/query/kernel",
        "bert/encoder/layer_._0/attention/self/query/kernel:0",
        "bert.encoder.layer.0.attention.self.query.weight",
    ),
    (
        "bert/embeddings/word_embeddings/embedding",
        "bert/embeddings/word_embeddings/weight:0",
        "bert.embeddings.word_embeddings.weight",
    ),
    (
        "bert/embeddings/position_embeddings/embedding",
        "bert/embeddings/position_embeddings/embeddings:0",
        "bert.embeddings.position_embeddings.weight",
    ),
    (
        "cls/predictions/transform/LayerNorm/scale",
        "mlm___cls/predictions/transform/LayerNorm/gamma:0",
        "cls.predictions.transform.LayerNorm.weight",
    ),
    ("cls/predictions/bias", "mlm___cls/predictions/bias:0", "cls.predictions.bias"),
    ("cls/seq_relationship/kernel", "nsp___cls/seq_relationship/kernel:0", "cls.seq_relationship.weight"),
    ("lm_head/layer_norm/bias", "lm_head/layer_norm/beta:0", "lm_head.layer_norm.bias"),
    ("classifier/out_proj/kernel", "classifier/out_proj/kernel:0", "classifier.out_proj.weight"),
    (
        "distilbert/transformer/layer/1/attention/q_lin/kernel",
        "distilbert/transformer/layer_._1/attention/q_lin/kernel:0",
        "distilbert.transformer.layer.1.attention.q_lin.weight",
    ),
    ("vocab_projector/bias", "vocab_projector/bias:0", "vocab_projector.bias"),
    (
        "generator_predictions/LayerNorm/scale",
        "generator_predictions/LayerNorm/gamma:0",
        "generator_predictions.LayerNorm.weight",
    ),
    (
        "albert/encoder/albert_layer_groups/0/albert_layers/0/ffn/kernel",
        "albert/encoder/albert_layer_groups_._0/albert_layers_._0/ffn/kernel:0",
        "albert.encoder.albert_layer_groups.0.albert_layers.0.ffn.weight",
    ),
]


@pytest.mark.parametrize(("flax", "keras", "torch"), NAMES)
def test_names(flax: str, keras: str, torch: str) -> None:
    assert torch_name(flax_path(flax)) == torch
    assert torch_name(keras_path(keras)) == torch


def converted(**arrays: np.ndarray) -> dict[str, np.ndarray]:
    tensors = {
        name.replace("__", "/"): Tensor(array.shape, lambda array=array: array)
        for name, array in arrays.items()
    }
    found = as_in_torch(Path("x"), tensors, flax_path)
    assert all(tensor.shape == tensor.read().shape for tensor in found.values())
    return {name: tensor.read() for name, tensor in found.items()}


def test_only_kernels_are_transposed() -> None:
    square = np.random.RandomState(0).standard_normal((3, 3)).astype(np.float32)
    found = converted(a__kernel=square[:2], a__bias=square[0], b__embedding=square, c__scale=square[1])
    assert found.keys() == {"a.weight", "a.bias", "b.weight", "c.weight"}
    np.testing.assert_array_equal(found["a.weight"], square[:2].T)
    np.testing.assert_array_equal(found["b.weight"], square)
    np.testing.assert_array_equal(found["c.weight"], square[1])


def test_kernels_of_convolutions_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"x: tensor a/kernel has the shape \(3, 2, 4\): must have two dimensions"
    ):
        converted(a__kernel=np.ones((3, 2, 4)))


def test_tensors_of_one_name_must_be_equal() -> None:
    square = np.arange(9.0).reshape(3, 3)
    assert converted(a__kernel=square, a__weight=square.T).keys() == {"a.weight"}
    for other in (square, np.zeros(3)):
        with pytest.raises(InputError, match=r"x: tensor a\.weight exists twice, with different numbers"):
            converted(a__kernel=square, a__weight=other)
