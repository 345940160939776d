"""Writes torch's tensors as transformers' Flax and TensorFlow classes did until version 4, without the library."""

from pathlib import Path

import h5py
import numpy as np
from flax.serialization import msgpack_serialize
from flax.traverse_util import unflatten_dict
from safetensors.numpy import save_file

State = dict[str, np.ndarray]


def flax_params(state: State) -> State:
    """Returns Flax's arrays by path, such as bert/pooler/dense/kernel."""
    return {
        "/".join([*modules, ending]): array
        for modules, ending, array in _renamed(state, "scale", "bias", ["embedding"] * 3)
    }


def write_flax(state: State, file: Path) -> None:
    """Writes flax_model.msgpack."""
    file.write_bytes(msgpack_serialize(unflatten_dict(flax_params(state), sep="/")))


def tf_variables(state: State) -> State:
    """Returns the datasets of tf_model.h5 by path; the head holds the token embedding, too."""
    variables = {}
    model = "tf_bert_for_masked_lm"
    for modules, ending, array in _renamed(state, "gamma", "beta", ["weight", "embeddings", "embeddings"]):
        group = modules[0]
        if group == "cls":
            group = modules[0] = "mlm___cls" if modules[1] == "predictions" else "nsp___cls"
        name = "/".join([model, *modules, f"{ending}:0"]).replace("/layer/", "/layer_._")
        variables[f"{group}/{name}"] = array
        if "word_embeddings" in name:
            variables[f"mlm___cls/{name}"] = array
    return variables


def write_tf_h5(state: State, file: Path) -> None:
    """Writes tf_model.h5."""
    with h5py.File(file, "w") as opened:
        for name, array in tf_variables(state).items():
            opened[name] = array


def write_flax_safetensors(state: State, file: Path) -> None:
    """Writes model.safetensors of a Flax class."""
    params = {
        name.replace("/", "."): np.ascontiguousarray(array) for name, array in flax_params(state).items()
    }
    save_file(params, file, {"format": "flax"})


def write_tf_safetensors(state: State, file: Path) -> None:
    """Writes model.safetensors of a TensorFlow class."""
    variables = {
        name.split("/", 2)[2]: np.ascontiguousarray(array) for name, array in tf_variables(state).items()
    }
    save_file(variables, file, {"format": "tf"})


WRITERS = {
    "flax_model.msgpack": write_flax,
    "tf_model.h5": write_tf_h5,
    "model.safetensors of Flax": write_flax_safetensors,
    "model.safetensors of TensorFlow": write_tf_safetensors,
}


def _renamed(state: State, scale: str, offset: str, tables: list[str]):
    """Yields the modules and ending of every tensor, and the array in their layout."""
    kinds = ("word_embeddings", "position_embeddings", "token_type_embeddings")
    for name, array in state.items():
        *modules, ending = name.split(".")
        if modules[-1] in kinds:
            yield modules, tables[kinds.index(modules[-1])], array
        elif "norm" in modules[-1].lower():
            yield modules, scale if ending == "weight" else offset, array
        elif ending == "weight":
            yield modules, "kernel", array.T
        else:
            yield modules, ending, array
