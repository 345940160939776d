"""Peak FLOPs of accelerators by device kind."""

import pytest

from mlm_jax.step.chips import peak_flops


@pytest.mark.parametrize(
    ("device_kind", "peak"),
    [
        ("TPU v3", 61.5e12),
        ("TPU v4", 275e12),
        ("TPU v4 lite", None),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L400", None),
        ("cpu", None),
    ],
)
def test_peak_flops_of_a_device(device_kind: str, peak: float | None) -> None:
    assert peak_flops(device_kind, "bfloat16") == peak
    assert peak_flops(device_kind, "float32") is None
