"""Chooses the automatic settings of `ComputeConfig` for a model, the length of its rows, and a device."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from mlm_jax.config import ComputeConfig
from mlm_jax.config.model import BertConfig
from mlm_jax.model.attention import choose_attention
from mlm_jax.model.kernels import nvidia_capability

# The 12 of BERT-base would double the time of compilation, and need a fifth more memory (docs/performance.md).
_MOST_UNROLLED_LAYERS = 6


@dataclass(frozen=True)
class ComputeChoice:
    """Settings of a program, none of them automatic but the chunks of the loss, and the reasons for some."""

    config: ComputeConfig
    reasons: Mapping[str, str]
    """Maps names of settings to reasons."""

    def __str__(self) -> str:
        """Returns the settings on one line."""
        unroll = self.config.scan_unroll or 1
        parts = {
            "dtype": self.config.dtype,
            "scan_unroll": f"{unroll} layers unrolled" if unroll > 1 else "layers in a loop",
            "attention": f"attention {self.config.attention}",
            "remat": f"remat {self.config.remat}",
        }
        reasons = {name: f" ({reason})" for name, reason in self.reasons.items() if reason}
        return ", ".join(f"{what}{reasons.get(name, '')}" for name, what in parts.items())


def choose_compute(compute: ComputeConfig, model: BertConfig, length: int, device: Any) -> ComputeChoice:
    """Chooses dtype, unrolling and attention for training and evaluation on rows of `length` tokens.

    `device` is one of the devices that the program is compiled for, attached or not.

    Raises:
        InputError: the config names an attention kernel that cannot run on this device or does not support the model.
    """
    settled, reasons = settle(compute, model, device)
    attention = choose_attention(settled, model, length, device)
    settled = replace(settled, attention=attention.implementation)
    return ComputeChoice(settled, reasons | {"attention": attention.reason})


def settle(compute: ComputeConfig, model: BertConfig, device: Any) -> tuple[ComputeConfig, dict[str, str]]:
    """Returns `compute` with a dtype and an unrolling that are not automatic, and the reasons for the chosen ones.

    A run records these two, because they affect rounding. Of `device`, only `platform`, `device_kind` and
    `compute_capability` matter.
    """
    reasons: dict[str, str] = {}
    dtype, why = _dtype(device)
    if compute.dtype == "auto":
        compute, reasons["dtype"] = replace(compute, dtype=dtype), why
    elif compute.dtype != dtype:
        reasons["dtype"] = f"not {dtype}, {why}"
    if compute.scan_unroll is None:
        unroll, reasons["scan_unroll"] = _unroll(compute, model, device)
        compute = replace(compute, scan_unroll=unroll)
    return compute, reasons


def _dtype(device: Any) -> tuple[Literal["float32", "bfloat16"], str]:
    capability = nvidia_capability(device)
    if capability is not None and capability < 8.0:
        return "float32", f"{device.device_kind} has no bfloat16"
    return (
        "bfloat16" if device.platform in ("gpu", "tpu") else "float32"
    ), f"the default on {device.device_kind}"


def _unroll(compute: ComputeConfig, model: BertConfig, device: Any) -> tuple[int, str]:
    if device.platform != "cpu":
        return 1, f"the default on {device.device_kind}"
    if model.num_layers == 1:
        return 1, "one layer"
    if compute.remat != "none":
        return 1, "because of rematerialization"
    if model.num_layers > _MOST_UNROLLED_LAYERS:
        return 1, f"more than {_MOST_UNROLLED_LAYERS}"
    return model.num_layers, f"the default on {device.device_kind}"
