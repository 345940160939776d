"""Names of a family's tensors in transformers, in all the forms in which files of these have been published.

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
from mlm_jax.families.family import Family
from mlm_jax.formats.name_table import Tensor
from mlm_jax.formats.tensor_checks import some

_OLD_ENDINGS = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
# torch's DataParallel and compile, Lightning, sentence-transformers.
# As short as possible, because a family's own prefix may look like one.
_WRAPPER = r"((module|_orig_mod|model|auto_model)\.)*?"


@dataclass(frozen=True)
class NamedTensors:
    """The tensors of a file under the names of the family's table."""

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
    where: Path,
    family: Family,
    tensors: Mapping[str, Tensor],
    *,
    tied: bool,
    heads: tuple[str, ...],
    unused: Mapping[str, str],
) -> NamedTensors:
    """Finds a family's tensors in a file.

    Args:
        where: folder of the file, for messages.
        family: the family of the model.
        tensors: tensors by their names in the file.
        tied: True if the output embedding is the token embedding.
        heads: prefixes of the tensors of heads that we have.
        unused: prefixes of tensors that the class of the model does not read, with the reason.

    Raises:
        InputError: there is no encoder of the family, or more than one; a tensor exists under two names; or one that
            must equal another does not.
    """
    wrapper, bare = _prefixes(where, family, tensors)
    renamed: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    dropped, left_out = {}, []
    known, modules = (family.prefix, *heads), family.modules
    for name, tensor in tensors.items():
        new = name.removeprefix(wrapper)
        for old, ending in _OLD_ENDINGS.items():
            new = new.replace(old, ending)
        if bare and new.startswith(modules):
            new = family.prefix + new
        if not name.startswith(wrapper) or not new.startswith(known):
            left_out.append(name)
            continue
        reasons = [reason for beginning, reason in unused.items() if new.startswith(beginning)]
        if reasons:
            dropped[name] = reasons[0]
            continue
        if new in renamed:
            raise InputError(f"{where}: tensor {name} exists under two names")
        renamed[new], names[new] = tensor, name
    dropped |= _drop_constants(where, family, renamed) | _drop_repeated(where, family, renamed, tied=tied)
    return NamedTensors(renamed, dropped, left_out, wrapper, names)


def _prefixes(where: Path, family: Family, tensors: Mapping[str, Tensor]) -> tuple[str, bool]:
    """Returns the wrapper's prefix, and True if the family's own prefix is missing after it.

    Other prefixes are those of other architectures, some of which have the same tensors.
    """
    ending = family.token_table.removeprefix(family.prefix)
    found = [name.removesuffix(ending) for name in tensors if name.endswith(ending)]
    if len(found) != 1:
        raise InputError(
            f"{where}: {len(found)} tensors named {ending}"
            f"{f' ({some(found)})' if found else ''}: must be one, the token embedding of a {family.name}"
        )
    match = re.fullmatch(f"(?P<wrapper>{_WRAPPER})(?P<encoder>{re.escape(family.prefix)})?", found[0])
    if match is None:
        raise InputError(
            f"{where}: tensors named {found[0]}{ending}, …: not {family.name}'s, which begin with {family.prefix}"
        )
    return match["wrapper"], not match["encoder"]


def _drop_constants(where: Path, family: Family, renamed: dict[str, Tensor]) -> dict[str, str]:
    dropped = {}
    for pattern, values_of in family.constants.items():
        # transformers 5 writes "*" for what all layers share.
        matching = re.compile(re.escape(pattern).replace(re.escape("{layer}"), r"(\d+|\*)"))
        for name in [name for name in renamed if matching.fullmatch(name)]:
            values = renamed.pop(name).read().reshape(-1)
            expected = values_of(len(values))
            meaning = f"{', '.join(f'{value:.3g}' for value in expected[:3])}, …"
            # Half-precision models round them.
            if not np.allclose(values.astype(np.float64), expected, rtol=1e-2, atol=1e-4):
                raise InputError(f"{where}: {name} is not {meaning}: other values are not supported")
            dropped[name] = f"a constant: {meaning}"
    return dropped


def _drop_repeated(where: Path, family: Family, renamed: dict[str, Tensor], *, tied: bool) -> dict[str, str]:
    dropped = {}
    bias, decoder, decoder_bias = family.bias, family.decoder, family.decoder_bias

    def same(first: str, second: str) -> bool:
        return np.array_equal(renamed[first].read(), renamed[second].read())

    if decoder_bias and decoder_bias in renamed:
        if bias not in renamed:
            renamed[bias] = renamed[decoder_bias]
        elif same(bias, decoder_bias):
            dropped[decoder_bias] = f"the same numbers as {bias}"
        elif tied:
            raise InputError(f"{where}: tied, but {decoder_bias} is not {bias}: must be equal")
        else:
            # If untied, transformers 5 adds the decoder's bias and never reads the other bias.
            renamed[bias] = renamed[decoder_bias]
            dropped[bias] = f"not read if the decoder is untied: {decoder_bias} is added instead"
        renamed.pop(decoder_bias)
    if tied and decoder in renamed:
        if family.token_table not in renamed or not same(decoder, family.token_table):
            raise InputError(
                f"{where}: tie_word_embeddings is true, but {decoder} is not the word embedding: must be equal"
            )
        dropped[decoder] = f"tied: the same numbers as {family.token_table}"
        renamed.pop(decoder)
    return dropped
