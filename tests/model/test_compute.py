"""Automatic settings follow the device, the model and each other."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from mlm_jax.config import BertConfig, ComputeConfig
from mlm_jax.model.compute import choose_compute

CPU = SimpleNamespace(platform="cpu", device_kind="cpu")
TPU = SimpleNamespace(platform="tpu", device_kind="TPU v5 lite")
H100 = SimpleNamespace(platform="gpu", device_kind="NVIDIA H100", compute_capability="9.0")
T4 = SimpleNamespace(platform="gpu", device_kind="Tesla T4", compute_capability="7.5")
AMD = SimpleNamespace(platform="gpu", device_kind="MI300X", compute_capability="gfx942")
BASE = BertConfig(attention_dropout_rate=0.0)


@pytest.mark.parametrize(
    ("device", "compute", "model", "length", "said"),
    [
        (
            CPU,
            ComputeConfig(),
            replace(BASE, num_layers=6),
            512,
            "float32 (the default on cpu), 6 layers unrolled (the default on cpu), attention xla, remat none",
        ),
        (
            CPU,
            ComputeConfig(remat="full"),
            BASE,
            512,
            "float32 (the default on cpu), layers in a loop (because of rematerialization), attention xla, remat full",
        ),
        (
            CPU,
            ComputeConfig(dtype="bfloat16"),
            replace(BASE, num_layers=7),
            512,
            "bfloat16 (not float32, the default on cpu), layers in a loop (more than 6), attention xla, remat none",
        ),
        (
            TPU,
            ComputeConfig(),
            BASE,
            512,
            "bfloat16 (the default on TPU v5 lite), layers in a loop (the default on TPU v5 lite), attention splash, "
            "remat none",
        ),
        # The kernel needs the dtype that is chosen.
        (
            H100,
            ComputeConfig(),
            BASE,
            512,
            "bfloat16 (the default on NVIDIA H100), layers in a loop (the default on NVIDIA H100), attention cudnn, "
            "remat none",
        ),
        (
            H100,
            ComputeConfig(dtype="float32", scan_unroll=4),
            BASE,
            512,
            "float32 (not bfloat16, the default on NVIDIA H100), 4 layers unrolled, "
            "attention xla (cudnn needs compute.dtype = 'bfloat16', not 'float32'), remat none",
        ),
    ],
)
def test_a_line_says_what_was_chosen_and_why(
    device: Any, compute: ComputeConfig, model: BertConfig, length: int, said: str
) -> None:
    choice = choose_compute(compute, model, length, device)
    assert str(choice) == said
    assert choice.config.dtype != "auto"
    assert choice.config.scan_unroll is not None


@pytest.mark.parametrize(
    ("device", "dtype", "why"),
    [(T4, "float32", "Tesla T4 has no bfloat16"), (AMD, "bfloat16", "the default on MI300X")],
)
def test_bfloat16_is_the_default_where_the_hardware_has_it(device: Any, dtype: str, why: str) -> None:
    choice = choose_compute(ComputeConfig(), BASE, 128, device)
    assert (choice.config.dtype, choice.reasons["dtype"]) == (dtype, why)
