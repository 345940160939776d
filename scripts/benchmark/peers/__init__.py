"""Other libraries at the same work: each module is a contestant, in a process of its own with what it needs."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from scripts.benchmark.contest import Contestant

_KERAS_HUB, _HUGGING_FACE = "KerasHub", "Hugging Face"


def keras_hub(work: str, settings: Mapping[str, Any], name: str = _KERAS_HUB) -> list[Contestant]:
    """The contestant at that work, on Keras' jax backend; none where it is not installed."""
    module = f"{__name__}.keras_hub_{work}"
    there = find_spec("keras_hub") is not None
    return [Contestant(name, module, settings, {"KERAS_BACKEND": "jax"})] if there else []


def hugging_face(work: str, settings: Mapping[str, Any]) -> list[Contestant]:
    """The contestant at that work; none where it is not installed."""
    module = f"{__name__}.hugging_face_{work}"
    there = find_spec("transformers") is not None and find_spec("torch") is not None
    # Where ours is imported for the work, its jax shall leave the accelerator to torch.
    return [Contestant(_HUGGING_FACE, module, settings, {"JAX_PLATFORMS": "cpu"})] if there else []
