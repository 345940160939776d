"""Manifest of a checkpoint: names and shapes of its arrays, the run it belongs to, and a checksum."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from mlm_jax.config.model import ADDED_SETTINGS
from mlm_jax.config.settings import flatten
from mlm_jax.store.orbax_errors import reason

PyTree = Any

_ITEMS_SHOWN = 8


def name_leaves(tree: PyTree, part: str | None = None) -> tuple[dict[str, Any], jax.tree_util.PyTreeDef]:
    """Returns the leaves by dotted path, and the treedef. Paths do not depend on the classes of the tree's nodes.

    Args:
        tree: any pytree.
        part: attribute or key of `tree` in a larger tree; becomes the first part of every path.

    Raises:
        ValueError: two leaves have the same dotted path.
    """
    paths, treedef = jax.tree_util.tree_flatten_with_path(tree)
    prefix = "" if part is None else f"{part}."
    leaves = {prefix + jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in paths}
    if len(leaves) != len(paths):
        raise ValueError("two leaves of the state have the same dotted path")
    return leaves, treedef


def describe_arrays(leaves: dict[str, Any]) -> dict[str, str]:
    """Returns dtype and shape of each leaf, such as `float32[2,64]`."""
    return {name: f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]" for name, leaf in leaves.items()}


def abstract_arrays(described: dict[str, str]) -> dict[str, jax.ShapeDtypeStruct]:
    """Inverts `describe_arrays`, with all arrays on the first CPU device."""
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    abstract = {}
    for name, text in described.items():
        dtype, _, sizes = text.rstrip("]").partition("[")
        shape = tuple(int(size) for size in sizes.split(",") if size)
        abstract[name] = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=sharding)
    return abstract


def sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    """Returns the manifest after a round trip through JSON, with its SHA-256."""
    manifest = _as_json(manifest)
    text = json.dumps(manifest, sort_keys=True)
    return {"manifest": manifest, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def describe_differences(stored: dict[str, Any], now: dict[str, Any]) -> str:
    """Returns `field: a in the checkpoint, b now; …` for two nested dicts; empty if they are equal as JSON."""
    absent = object()

    def show(value: Any) -> str:
        text = "absent" if value is absent else json.dumps(value)
        return text if len(text) <= 40 else f"{text[:16]}…{text[-8:]}"

    before, after = flatten(stored), flatten(_as_json(now))
    pairs = [(name, before.get(name, absent), after.get(name, absent)) for name in before | after]
    lines = [f"{name}: {show(a)} in the checkpoint, {show(b)} now" for name, a, b in pairs if a != b]
    return enumerate_some(lines, "; ")


def completed(stored: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Returns a flattened description with the settings of `now` that an older checkpoint lacks, at their defaults."""
    added = {f"model.{name}": default for name, default in ADDED_SETTINGS.items()}
    return {name: default for name, default in added.items() if name in flatten(now)} | flatten(stored)


def known_settings(description: dict[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the part of a flattened description that a checkpoint has, too."""
    return {name: value for name, value in flatten(description).items() if name in known}


def enumerate_some(items: Sequence[object], separator: str = ", ") -> str:
    """Returns the first few items, and the number of the others."""
    shown = separator.join(map(str, items[:_ITEMS_SHOWN]))
    more = len(items) - _ITEMS_SHOWN
    return f"{shown}{separator}and {more} more" if more > 0 else shown


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


class DamagedError(Exception):
    """A checkpoint is damaged; the message describes the damage."""


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """Returns the manifest in the folder of a checkpoint. Raises DamagedError if its checksum does not match."""
    try:
        content = read_item(ocp.JsonCheckpointHandler(), checkpoint / "manifest", ocp.args.JsonRestore())
        whole = content == sealed(content["manifest"])
    except Exception as error:
        raise DamagedError(f"manifest: {reason(error)}") from error
    if not whole:
        raise DamagedError("manifest: the checksum does not match")
    manifest: dict[str, Any] = content["manifest"]
    return manifest


def read_item(handler: ocp.CheckpointHandler, item: Path, args: ocp.args.CheckpointArgs) -> Any:
    """Returns an item of a checkpoint. Raises what Orbax raises."""
    try:
        return handler.restore(item, args=args)
    finally:
        handler.close()
