"""Contestants of other libraries, one per module."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from scripts.benchmark.contest import Contestant

_KERAS_HUB, _HUGGING_FACE = "KerasHub", "Hugging Face"


def keras_hub(work: str, settings: Mapping[str, Any], name: str = _KERAS_HUB) -> list[Contestant]:
    """Returns KerasHub's contestant for `work`, on the jax backend of Keras; an empty list if it is not installed."""
    module = f"{__name__}.keras_hub_{work}"
    there = find_spec("keras_hub") is not None
    return [Contestant(name, module, settings, {"KERAS_BACKEND": "jax"})] if there else []


def hugging_face(work: str, settings: Mapping[str, Any]) -> list[Contestant]:
    """Returns the contestant of transformers for `work`; an empty list if it is not installed."""
    module = f"{__name__}.hugging_face_{work}"
    there = find_spec("transformers") is not None and find_spec("torch") is not None
    # If the contestant imports mlm_jax, jax must leave the accelerator to torch.
    return [Contestant(_HUGGING_FACE, module, settings, {"JAX_PLATFORMS": "cpu"})] if there else []
