"""Gives Flax's and Keras's tensors the names and layouts that the same weights have in torch.

bert/encoder/layer/0/output/dense/kernel       [in, out]   bert.encoder.layer.0.output.dense.weight   [out, in]
bert/encoder/layer_._0/output/dense/kernel:0   [in, out]   the same, of Keras
bert/encoder/layer/0/output/LayerNorm/scale                bert.encoder.layer.0.output.LayerNorm.weight
bert/embeddings/word_embeddings/embedding                  bert.embeddings.word_embeddings.weight
mlm___cls/predictions/bias:0                               cls.predictions.bias

transformers' classes of all three libraries have modules of the same names, so no family needs a table of its own.
Compared with what transformers 4.57.6 writes, tensor by tensor and with all heads: BERT, RoBERTa, XLM-RoBERTa,
DistilBERT, ELECTRA and ALBERT of both libraries, CamemBERT, MPNet and RoFormer of TensorFlow. In TensorFlow, MPNet's
masked LM has a pooler, and ALBERT's adds predictions.decoder.bias, which is not tied to predictions.bias as in torch.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from mlm_jax.errors import InputError
from mlm_jax.formats.name_table import Tensor

_KERNEL = "kernel"
_ENDINGS = {
    _KERNEL: "weight",
    # Flax.
    "scale": "weight",
    "embedding": "weight",
    # Keras.
    "gamma": "weight",
    "beta": "bias",
    "embeddings": "weight",
}
# Between a name that is unique in Keras and torch's, and between a list and an index into it.
_KERAS_ALIAS, _KERAS_INDEX = "___", "_._"


def flax_path(name: str) -> list[str]:
    """Returns the names of the modules of a Flax parameter, and its own."""
    return name.split("/")


def keras_path(name: str) -> list[str]:
    """Returns the names of the modules of a Keras variable in torch, and its own in Keras."""
    parts = name.removesuffix(":0").split("/")
    return [module for part in parts for module in part.rpartition(_KERAS_ALIAS)[2].split(_KERAS_INDEX)]


def torch_name(path: Sequence[str]) -> str:
    """Returns torch's name for the weight at a path."""
    *modules, ending = path
    return ".".join([*modules, _ENDINGS.get(ending, ending)])


def as_in_torch(
    where: Path, tensors: Mapping[str, Tensor], path_of: Callable[[str], Sequence[str]]
) -> dict[str, Tensor]:
    """Returns tensors by torch's names and in its layout, in which the kernels of linear maps are transposed.

    Args:
        where: the file of the tensors, for messages.
        tensors: tensors by their names in the file.
        path_of: returns the path for a name: `flax_path` or `keras_path`.

    Raises:
        InputError: two tensors of one name in torch are not equal. Reading the kernel of a convolution raises it, too:
            torch orders its dimensions in another way.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        path = path_of(name)
        new, converted = torch_name(path), tensor
        if path[-1] == _KERNEL:
            converted = Tensor(tensor.shape[::-1], partial(_transposed, where, name, tensor))
        if new in found and not _equal(found[new], converted):
            raise InputError(f"{where}: tensor {new} exists twice, with different numbers")
        found.setdefault(new, converted)
    return found


def _transposed(where: Path, name: str, tensor: Tensor) -> np.ndarray:
    if len(tensor.shape) != 2:
        raise InputError(f"{where}: tensor {name} has the shape {tensor.shape}: must have two dimensions")
    return tensor.read().T


def _equal(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and np.array_equal(first.read(), second.read())
