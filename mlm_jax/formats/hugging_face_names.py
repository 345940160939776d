"""Names of BERT's tensors in transformers, in all the forms in which files of these have been published.

bert.encoder.layer.0.output.LayerNorm.weight      transformers today
encoder.layer.0.output.LayerNorm.weight           a BertModel alone
module.bert.encoder.layer.0. …                    saved from a wrapper, such as torch's DataParallel
bert.encoder.layer.0.output.LayerNorm.gamma       until 2020
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlm_jax.errors import InputError
from mlm_jax.formats.name_table import Endings, Row, Tensor
from mlm_jax.formats.tensor_checks import some

ENCODER_PREFIX = "bert."
_POSITIONS = "bert.embeddings.position_ids"
_TOKENS = "bert.embeddings.word_embeddings.weight"
BIAS, DECODER, DECODER_BIAS = (
    f"cls.predictions.{name}" for name in ("bias", "decoder.weight", "decoder.bias")
)

_ENDINGS = Endings(kernel=".weight", bias=".bias", scale=".weight", offset=".bias", layout="out_in")
_LAYER, _LAYERS = "bert.encoder.layer.{layer}", "encoder/layers"
ROWS: tuple[Row, ...] = (
    Row(_TOKENS, "encoder/embeddings/token"),
    Row("bert.embeddings.position_embeddings.weight", "encoder/embeddings/position"),
    Row("bert.embeddings.token_type_embeddings.weight", "encoder/embeddings/segment"),
    *_ENDINGS.norm("bert.embeddings.LayerNorm", "encoder/embeddings/norm"),
    *_ENDINGS.linear(f"{_LAYER}.attention.self.query", f"{_LAYERS}/attention/query"),
    *_ENDINGS.linear(f"{_LAYER}.attention.self.key", f"{_LAYERS}/attention/key"),
    *_ENDINGS.linear(f"{_LAYER}.attention.self.value", f"{_LAYERS}/attention/value"),
    *_ENDINGS.linear(f"{_LAYER}.attention.output.dense", f"{_LAYERS}/attention/output"),
    *_ENDINGS.norm(f"{_LAYER}.attention.output.LayerNorm", f"{_LAYERS}/attention_norm"),
    *_ENDINGS.linear(f"{_LAYER}.intermediate.dense", f"{_LAYERS}/feed_forward/up"),
    *_ENDINGS.linear(f"{_LAYER}.output.dense", f"{_LAYERS}/feed_forward/down"),
    *_ENDINGS.norm(f"{_LAYER}.output.LayerNorm", f"{_LAYERS}/feed_forward_norm"),
    *_ENDINGS.linear("bert.pooler.dense", "encoder/pooler"),
    *_ENDINGS.linear("cls.predictions.transform.dense", "head/dense"),
    *_ENDINGS.norm("cls.predictions.transform.LayerNorm", "head/norm"),
    Row(BIAS, "head/bias"),
    Row(DECODER, "head/output"),
    *_ENDINGS.linear("cls.seq_relationship", "next_sentence"),
    *_ENDINGS.linear("classifier", "classifier"),
)

_OLD_ENDINGS = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
# torch's DataParallel and compile, Lightning, sentence-transformers.
_PREFIX = re.compile(r"(?P<wrapper>((module|_orig_mod|model|auto_model)\.)*)(?P<encoder>bert\.)?")
# Buffers that some versions of transformers saved.
_SEGMENTS = "bert.embeddings.token_type_ids"
_HEAD_PREFIXES = ("cls.predictions.", "cls.seq_relationship.")
_CLASSIFIER_PREFIX = "classifier."


@dataclass(frozen=True)
class NamedTensors:
    """The tensors of a file under the names of `ROWS`."""

    tensors: dict[str, Tensor]
    dropped: dict[str, str]
    """Maps the names of redundant tensors to the reason to drop them."""
    left_out: list[str]
    """Names of tensors outside the encoder that belong to an unknown head."""
    wrapper: str
    """Prefix of all names in the file, such as "module."."""
    names: dict[str, str]
    """Maps the names of `tensors` to those in the file."""


def name_tensors(
    where: Path, tensors: Mapping[str, Tensor], *, tied: bool, with_classifier: bool
) -> NamedTensors:
    """Finds BERT's tensors in a file.

    Args:
        where: folder of the file, for messages.
        tensors: tensors by their names in the file.
        tied: True if the output embedding is the token embedding.
        with_classifier: True if `classifier.*` classifies texts; in some classes it classifies tokens.

    Raises:
        InputError: there is no BERT, or more than one; a tensor exists under two names; or one that must equal another
            does not.
    """
    wrapper, bare = _prefixes(where, tensors)
    renamed: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    left_out = []
    for name, tensor in tensors.items():
        new = name.removeprefix(wrapper)
        for old, ending in _OLD_ENDINGS.items():
            new = new.replace(old, ending)
        if bare and new.startswith(("embeddings.", "encoder.", "pooler.")):
            new = ENCODER_PREFIX + new
        heads = (*_HEAD_PREFIXES, *([_CLASSIFIER_PREFIX] if with_classifier else ()))
        if not name.startswith(wrapper) or not new.startswith((ENCODER_PREFIX, *heads)):
            left_out.append(name)
            continue
        if new in renamed:
            raise InputError(f"{where}: tensor {name} exists under two names")
        renamed[new], names[new] = tensor, name
    dropped = _drop_constants(where, renamed) | _drop_repeated(where, renamed, tied=tied)
    return NamedTensors(renamed, dropped, left_out, wrapper, names)


def _prefixes(where: Path, tensors: Mapping[str, Tensor]) -> tuple[str, bool]:
    """Returns the wrapper's prefix, and True if BERT's own prefix is missing after it.

    Other prefixes are those of other architectures, such as "roberta.", some of which have the same tensors.
    """
    ending = _TOKENS.removeprefix(ENCODER_PREFIX)
    found = [name.removesuffix(ending) for name in tensors if name.endswith(ending)]
    if len(found) != 1:
        raise InputError(
            f"{where}: {len(found)} tensors named {ending}"
            f"{f' ({some(found)})' if found else ''}: must be one, the token embedding of a BERT"
        )
    match = _PREFIX.fullmatch(found[0])
    if match is None:
        raise InputError(
            f"{where}: tensors named {found[0]}{ending}, …: not BERT's, which begin with {ENCODER_PREFIX}"
        )
    return match["wrapper"], not match["encoder"]


def _drop_constants(where: Path, renamed: dict[str, Tensor]) -> dict[str, str]:
    dropped = {}
    for name, meaning in ((_POSITIONS, "0, 1, 2, …"), (_SEGMENTS, "0, 0, 0, …")):
        if name not in renamed:
            continue
        values = renamed.pop(name).read().reshape(-1)
        expected = np.arange(len(values)) if name == _POSITIONS else np.zeros(len(values))
        if not np.array_equal(values, expected):
            raise InputError(f"{where}: {name} is not {meaning}: other values are not supported")
        dropped[name] = f"a constant: {meaning}"
    return dropped


def _drop_repeated(where: Path, renamed: dict[str, Tensor], *, tied: bool) -> dict[str, str]:
    dropped = {}

    def same(first: str, second: str) -> bool:
        return np.array_equal(renamed[first].read(), renamed[second].read())

    if DECODER_BIAS in renamed:
        if BIAS not in renamed:
            renamed[BIAS] = renamed[DECODER_BIAS]
        elif same(BIAS, DECODER_BIAS):
            dropped[DECODER_BIAS] = f"the same numbers as {BIAS}"
        elif tied:
            raise InputError(f"{where}: tied, but {DECODER_BIAS} is not {BIAS}: must be equal")
        else:
            # If untied, transformers 5 adds the decoder's bias and never reads the other bias.
            renamed[BIAS] = renamed[DECODER_BIAS]
            dropped[BIAS] = f"not read if the decoder is untied: {DECODER_BIAS} is added instead"
        renamed.pop(DECODER_BIAS)
    if tied and DECODER in renamed:
        if _TOKENS not in renamed or not same(DECODER, _TOKENS):
            raise InputError(
                f"{where}: tie_word_embeddings is true, but {DECODER} is not the word embedding: must be equal"
            )
        dropped[DECODER] = f"tied: the same numbers as {_TOKENS}"
        renamed.pop(DECODER)
    return dropped
