"""A step of every architecture of a family, compiled for a TPU slice that is not there, split in two ways."""

from dataclasses import replace
from typing import Any

import jax
import pytest

from mlm_jax.config import ComputeConfig, DataConfig, MeshConfig
from mlm_jax.config.model import BertConfig
from mlm_jax.families.registry import FAMILIES
from mlm_jax.model.bert import count_parameters
from mlm_jax.pods.compile_check import compile_step
from mlm_jax.pods.report import StepReport
from mlm_jax.pods.topology import topology_devices
from tests.families.test_families import config_like
from tests.pods.test_topology import needs_libtpu
from tests.small import CONFIG

# Long enough for the kernel, whose heads have 64 dimensions.
LENGTH = 512
WIDER: dict[str, Any] = {
    "vocabulary_size": 512,
    "hidden_dim": 256,
    "intermediate_dim": 512,
    "max_sequence_length": LENGTH,
    "attention_dropout_rate": 0.0,
}
# Several types have one architecture.
ARCHITECTURES = {
    replace(config_like(family), model_type="", **WIDER): family.model_type for family in reversed(FAMILIES)
}


@pytest.fixture(scope="module")
def chips() -> list[jax.Device]:
    return topology_devices("v5e:2x2")


@pytest.mark.release
@needs_libtpu
@pytest.mark.parametrize("model", ARCHITECTURES, ids=ARCHITECTURES.get)
def test_packed_rows_compile_and_every_rule_applies(model: BertConfig, chips: list[jax.Device]) -> None:
    config = replace(
        CONFIG,
        model=model,
        data=DataConfig(sequence_length=LENGTH, attend_within_documents=True),
        mesh=MeshConfig(data=1, fsdp=2, tensor=2),
        compute=ComputeConfig(dtype="bfloat16", remat="full"),
    )
    report = compile_step(config, chips)
    assert isinstance(report, StepReport)
    assert report.fits
    assert report.device_kind == "TPU v5 lite"
    # Norms and biases are small; all else is divided by both axes.
    whole = 4 * count_parameters(model, pooler=False, mlm_head=True)
    assert whole / 4 <= report.parameter_bytes < whole / 3
    assert {axis for each in report.collectives for axis in each.axes.split(" × ")} == {"fsdp", "tensor"}
