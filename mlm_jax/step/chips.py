"""Table of accelerators: memory, bandwidths and peak FLOP/s as published by their vendors. Does not import jax.

All values are per JAX device. Google publishes ICI bandwidth as the sum of both directions and DCN bandwidth per pod;
NVIDIA publishes NVLink bandwidth as the sum of both directions and bfloat16 FLOP/s with sparsity. The table converts
these values.
"""

from dataclasses import dataclass

GIB = 2**30
_TPU = "cloud.google.com/tpu/docs/"


@dataclass(frozen=True, kw_only=True)
class Chip:
    """Peak values of one JAX device; None if the vendor does not publish a value for all machines."""

    bfloat16_flops: float
    """Dense FLOP/s of matrix products in bfloat16."""
    memory_bytes: int | None = None
    memory_bandwidth: float | None = None
    """Bytes per second between the chip and its memory."""
    link_bandwidth: float | None = None
    """Bytes per second that the chip receives from its neighbors (ICI, NVLink) over all links."""
    network_bandwidth: float | None = None
    """Bytes per second and chip over the network between slices or hosts (DCN), in one direction."""
    source: str


CHIPS: dict[str, Chip] = {
    # A v3 chip has two devices.
    "TPU v3": Chip(bfloat16_flops=61.5e12, source=_TPU + "v3"),
    "TPU v4": Chip(bfloat16_flops=275e12, source=_TPU + "v4"),
    "TPU v5 lite": Chip(
        bfloat16_flops=197e12,
        memory_bytes=16 * GIB,
        memory_bandwidth=819e9,
        link_bandwidth=400e9 / 2,
        # 6.4 Tbit/s per pod of 256 chips.
        network_bandwidth=6.4e12 / 8 / 256,
        source=_TPU + "v5e",
    ),
    "TPU v5": Chip(
        bfloat16_flops=459e12,
        memory_bytes=95 * GIB,
        memory_bandwidth=2765e9,
        link_bandwidth=1200e9 / 2,
        network_bandwidth=50e9 / 8,
        source=_TPU + "v5p",
    ),
    "TPU v6 lite": Chip(
        bfloat16_flops=918e12,
        memory_bytes=32 * GIB,
        memory_bandwidth=1638e9,
        link_bandwidth=800e9 / 2,
        # The page does not specify a network bandwidth per pod.
        source=_TPU + "v6e",
    ),
    "NVIDIA A100": Chip(bfloat16_flops=312e12, source="A100 data sheet"),
    "NVIDIA H100": Chip(
        bfloat16_flops=989e12,
        memory_bytes=80 * 10**9,
        memory_bandwidth=3.35e12,
        link_bandwidth=900e9 / 2,
        source="H100 data sheet, SXM",
    ),
    "NVIDIA H100 PCIe": Chip(bfloat16_flops=756e12, source="H100 data sheet, PCIe"),
    "NVIDIA H100 NVL": Chip(bfloat16_flops=835e12, source="H100 data sheet, NVL"),
    "NVIDIA H200": Chip(
        bfloat16_flops=989e12,
        memory_bytes=141 * 10**9,
        memory_bandwidth=4.8e12,
        link_bandwidth=900e9 / 2,
        source="H200 data sheet, SXM",
    ),
    "NVIDIA H200 NVL": Chip(bfloat16_flops=835e12, source="H200 data sheet, NVL"),
    "NVIDIA GH200": Chip(bfloat16_flops=989e12, source="GH200 data sheet"),
    "NVIDIA B200": Chip(bfloat16_flops=2250e12, source="B200 data sheet"),
    "NVIDIA A10": Chip(bfloat16_flops=125e12, source="A10 data sheet"),
    "NVIDIA L4": Chip(bfloat16_flops=121e12, source="L4 data sheet"),
    "NVIDIA L40S": Chip(bfloat16_flops=362e12, source="L40S data sheet"),
}
_ALSO_CALLED = {"TPU v5e": "TPU v5 lite", "TPU v5p": "TPU v5", "TPU v6e": "TPU v6 lite"}


def chip_of(device_kind: str) -> Chip | None:
    """Returns the chip of a `jax.Device.device_kind` such as "TPU v5 lite" or "NVIDIA H100 80GB HBM3", or None."""
    device_kind = _ALSO_CALLED.get(device_kind, device_kind)
    if not device_kind.startswith("NVIDIA"):
        return CHIPS.get(device_kind)
    # NVIDIA appends form factor and memory size; the longest match wins: "H100 PCIe" before "H100".
    words = device_kind.replace("-", " ").split()
    names = [" ".join(words[:count]) for count in range(len(words), 0, -1)]
    return next((CHIPS[name] for name in names if name in CHIPS), None)


def peak_flops(device_kind: str, compute_dtype: str) -> float | None:
    """Returns the peak FLOP/s of one device for matrix products in `compute_dtype`, or None if unknown.

    Only "bfloat16" is known, because the cost of float32 products depends on `jax_default_matmul_precision`.
    """
    chip = chip_of(device_kind)
    return chip.bfloat16_flops if chip is not None and compute_dtype == "bfloat16" else None
