"""Opens tf_model.h5, the weights of transformers' TensorFlow classes, as Keras 2 writes them.

Keras groups variables by the layer of the model that holds them, and their names begin with that of the model:

mlm___cls/tf_bert_for_masked_lm/mlm___cls/predictions/bias:0
mlm___cls/tf_bert_for_masked_lm/bert/embeddings/word_embeddings/weight:0
bert/tf_bert_for_masked_lm/bert/embeddings/word_embeddings/weight:0
"""

from contextlib import ExitStack
from pathlib import Path

from mlm_jax.errors import InputError
from mlm_jax.formats.h5_files import open_h5
from mlm_jax.formats.name_table import Tensor
from mlm_jax.formats.torch_layout import as_in_torch, keras_path

TF_WEIGHTS_FILE = "tf_model.h5"


def open_tf_h5(file: Path, stack: ExitStack) -> dict[str, Tensor]:
    """Returns the tensors of an existing file by torch's names and in its layout; it stays open until `stack` closes.

    A variable that several layers hold, such as the token embedding, is in the file several times; it is returned once.

    Raises:
        InputError: h5py is not installed, the file is damaged, refers to other files or has other names than those of
            transformers, or copies of a variable differ.
    """
    variables = open_h5(file, stack)
    for name in variables:
        if name.count("/") < 2:
            raise InputError(
                f"{file}: tensor {name}: must be in a layer and a model, as transformers writes it"
            )
    return as_in_torch(file, variables, lambda name: keras_path(name.split("/", 2)[2]))
