"""Runs Google's modeling code, from the package bert-tensorflow, on a checkpoint.

The package was written for TensorFlow 1.15. Later versions lack two APIs that it uses: the LayerNorm of `tf.contrib`,
which is replaced here, and `tf.layers`, which the package tf_keras provides.
"""

import os
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def run_google_bert(
    config_file: Path, prefix: Path, batch: Mapping[str, np.ndarray], *, gelu_by_erf: bool
) -> np.ndarray:
    """Returns the masked LM's logits [B, L, V], the classifier's [B, C], or the last hidden states [B, L, D].

    `gelu_by_erf` restores the GELU that the code used until February 2019.

    Raises:
        ImportError: TensorFlow, tf_keras or bert-tensorflow is not installed.
    """
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    import tensorflow as tf2
    import tensorflow.compat.v1 as tf
    import tf_keras  # noqa: F401

    names = set(dict(tf2.train.list_variables(str(prefix))))
    with _contrib(tf):
        from bert import modeling, run_pretraining

    if gelu_by_erf:
        modeling.gelu = lambda x: 0.5 * x * (1.0 + tf.erf(x / np.sqrt(2.0)))
    tf.disable_eager_execution()
    config = modeling.BertConfig.from_json_file(str(config_file))
    with tf.Graph().as_default(), tf.Session() as session:
        inputs = {name: tf.constant(array) for name, array in batch.items()}
        model = modeling.BertModel(
            config=config,
            is_training=False,
            input_ids=inputs["token_ids"],
            input_mask=inputs["padding_mask"],
            token_type_ids=inputs["segment_ids"],
            use_one_hot_embeddings=False,
        )
        rows, length = batch["token_ids"].shape
        if "cls/predictions/output_bias" in names:
            positions = tf.constant(np.tile(np.arange(length, dtype=np.int32), (rows, 1)))
            run_pretraining.get_masked_lm_output(
                config,
                model.get_sequence_output(),
                model.get_embedding_table(),
                positions,
                tf.zeros_like(positions),
                tf.ones_like(positions, tf.float32),
            )
            # The function itself returns only log-probabilities.
            wanted = tf.get_default_graph().get_tensor_by_name("cls/predictions/BiasAdd:0")
            wanted = tf.reshape(wanted, (rows, length, -1))
        elif "output_weights" in names:
            weights = tf.get_variable("output_weights", (_rows(prefix, tf2), config.hidden_size))
            bias = tf.get_variable("output_bias", (_rows(prefix, tf2),))
            wanted = tf.matmul(model.get_pooled_output(), weights, transpose_b=True) + bias
        else:
            wanted = model.get_sequence_output()
        # If the checkpoint has no pooler, the pooler of Google's model stays random, and the outputs do not use it.
        variables = [variable for variable in tf.global_variables() if variable.op.name in names]
        session.run(tf.global_variables_initializer())
        tf.train.Saver(variables).restore(session, str(prefix))
        return session.run(wanted)


def _rows(prefix: Path, tf: Any) -> int:
    return int(dict(tf.train.list_variables(str(prefix)))["output_weights"][0])


class _contrib:  # noqa: N801
    """Provides `tensorflow.contrib` while Google's modules are imported."""

    def __init__(self, tf: Any) -> None:
        self._modules = {name: types.ModuleType(name) for name in ("tensorflow.contrib",)}
        parts = ("layers", "cluster_resolver", "data", "tpu", "framework", "lookup")
        contrib = self._modules["tensorflow.contrib"]
        for part in parts:
            module = types.ModuleType(f"tensorflow.contrib.{part}")
            setattr(contrib, part, module)
            self._modules[module.__name__] = module
        self._modules["tensorflow.contrib.layers"].__dict__["layer_norm"] = _layer_norm(tf)

    def __enter__(self) -> None:
        sys.modules.update(self._modules)

    def __exit__(self, *_: object) -> None:
        for name in self._modules:
            sys.modules.pop(name, None)


def _layer_norm(tf: Any) -> Any:
    """Returns a replacement of `tf.contrib.layers.layer_norm` for the last dimension, with an epsilon of 1e-12."""

    def layer_norm(inputs: Any, begin_norm_axis: int, begin_params_axis: int, scope: str | None) -> Any:
        if (begin_norm_axis, begin_params_axis) != (-1, -1):
            raise NotImplementedError("Google's BERT normalizes only the last dimension")
        with tf.variable_scope(scope, "LayerNorm"):
            width = inputs.shape[-1:]
            beta = tf.get_variable("beta", width, initializer=tf.zeros_initializer())
            gamma = tf.get_variable("gamma", width, initializer=tf.ones_initializer())
            mean, variance = tf.nn.moments(inputs, [-1], keepdims=True)
            return tf.nn.batch_normalization(inputs, mean, variance, beta, gamma, 1e-12)

    return layer_norm
