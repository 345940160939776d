"""State of a run at step 0: random, or with the parameters of a stored model."""

from dataclasses import asdict, replace
from typing import Any

import jax
import numpy as np

from mlm_jax.config import TrainConfig
from mlm_jax.config.model import (
    HEAD_SETTINGS,
    POOLER_SETTINGS,
    POSITION_SETTINGS,
    WEIGHT_COMPATIBLE_SETTINGS,
    BertConfig,
)
from mlm_jax.errors import InputError
from mlm_jax.formats.model_folder import flatten_params, random_model, with_padded_rows
from mlm_jax.formats.name_table import Reading
from mlm_jax.run.reporting import say
from mlm_jax.step.program import Program
from mlm_jax.step.update import TrainState
from mlm_jax.store.checkpoint_manifest import enumerate_some
from mlm_jax.store.loading import load_reading
from mlm_jax.text.tokenizer import Tokenizer

_DROPOUT_SETTINGS = ("dropout_rate", "attention_dropout_rate")
# A model without a head has no value of these.
_HEAD_SETTINGS = (*HEAD_SETTINGS, "tie_embeddings")


def initial_state(config: TrainConfig, program: Program, tokenizer: Tokenizer) -> TrainState:
    """Returns the state at step 0, with the shardings of the program.

    Raises:
        InputError: `config.init_from` names no model, or one of another shape or tokenizer.
    """
    state = program.initial_state()
    if config.init_from is None:
        return state
    params = params_to_start_from(config.init_from, config.model, tokenizer, config.seed)

    def place(leaf: np.ndarray, like: jax.ShapeDtypeStruct) -> jax.Array:
        return jax.make_array_from_callback(leaf.shape, like.sharding, lambda index: leaf[index])

    return replace(state, params=jax.tree.map(place, params, program.abstract_state.params))


def params_to_start_from(name: str, wanted: BertConfig, tokenizer: Tokenizer, seed: int) -> dict[str, Any]:
    """Returns the parameters of the stored model `name` in the structure of the model `wanted`, in float32.

    Reports on stderr which of its tensors are used, a masked-LM head that is random, drawn from `seed`, because the
    model has none, and settings of dropout and positions that are not the model's.

    Raises:
        InputError: there is no such model, or its tokenizer or a setting that gives the weights their meaning differs;
            the message has all that differs.
    """
    reading = load_reading(name)
    model = reading.model
    changed, different, remedies = [], [], []
    if model.tokenizer.fingerprint != tokenizer.fingerprint:
        different.append(
            f"the tokenizer {model.tokenizer.fingerprint[:12]}: must be that of the data, {tokenizer.fingerprint[:12]}"
        )
        remedies.append(f"mlm-jax prepare --tokenizer {name} prepares data with that of the model")
    # The padding of the vocabulary may differ, too, but not the meaning of the weights.
    for setting, value in asdict(wanted).items():
        theirs = getattr(model.config, setting)
        without_meaning = (setting in _HEAD_SETTINGS and "head" not in model.params) or (
            setting in POOLER_SETTINGS and not wanted.pooler
        )
        if value == theirs or without_meaning:
            continue
        if setting in (*_DROPOUT_SETTINGS, *POSITION_SETTINGS):
            changed.append(f"model.{setting} = {theirs!r}: this run has {value!r}")
        elif setting not in WEIGHT_COMPATIBLE_SETTINGS and not (setting == "pooler" and theirs):
            different.append(f"model.{setting} = {theirs!r}: must be {value!r}, as in the run")
            remedies.append("without a config, the run takes its settings from the model")
    if different:
        raise InputError(
            f"init_from = {name!r}: has {'; '.join(different)}. {'; '.join(dict.fromkeys(remedies))}"
        )
    for change in changed:
        say(f"init_from = {name!r}: has {change}")
    head = model.params.get("head")
    if head is None:
        say(f"init_from = {name!r}: has no masked-LM head: the run starts with a random one")
        head = random_model(replace(wanted, vocabulary_multiple=1), tokenizer, seed).params["head"]
    encoder = _with_length(wanted.max_sequence_length, model.config, model.params["encoder"])
    params = with_padded_rows(wanted, {"encoder": encoder, "head": head})
    if not wanted.pooler:
        params["encoder"] = {key: leaf for key, leaf in params["encoder"].items() if key != "pooler"}
    say(f"weights from {name}: {_description(reading, params)}")
    return jax.tree.map(lambda leaf: leaf.astype(np.float32), params)


def _description(reading: Reading, params: dict[str, Any]) -> str:
    """Describes which tensors of a model are used, and which parameters are new."""
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    wanted, tensors = flatten_params(params), reading.tensors.keys() - reading.dropped.keys()
    left_out = sorted(name for name in tensors if wanted.keys().isdisjoint(reading.tensors[name]))
    used = (
        f"all {len(tensors):,}" if not left_out else f"{len(tensors) - len(left_out):,} of {len(tensors):,}"
    )
    new = sorted(wanted.keys() - {path for paths in reading.tensors.values() for path in paths})
    return (
        f"{count:,} parameters, {used} tensors used"
        f"{f'; not used: {enumerate_some(left_out)}' if left_out else ''}"
        f"{f'; new: {enumerate_some(new)}' if new else ''}"
    )


def _with_length(length: int, config: BertConfig, encoder: dict[str, Any]) -> dict[str, Any]:
    """Returns an encoder's parameters for rows of at most `length` tokens, and reports learned positions that change.

    A longer table of positions repeats the model's, so that position p has the embedding of p modulo its old length,
    as in Longformer (Beltagy et al. 2020, section 5). A shorter one is its beginning. Rows before the first position
    stay, and so does everything that the model computes for rows that it took before.
    """
    old = config.max_sequence_length
    if config.positions != "learned" or length == old:
        return encoder
    if length > old:
        say(f"positions from {old:,} on are copies of those from 0 on")
    else:
        say(f"positions from {length:,} on are left out")
    offset = config.position_offset
    rows = np.concatenate([np.arange(offset), offset + np.arange(length) % old])
    embeddings = encoder["embeddings"]
    return encoder | {"embeddings": embeddings | {"position": embeddings["position"][rows]}}
