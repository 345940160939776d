"""Kernels compared with the reference: splash interpreted on the CPU, cuDNN on a GPU, and a step compiled for a TPU."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import pytest
from jax import Array

from mlm_jax.model.attention import xla_attention
from mlm_jax.model.kernels import cudnn_attention
from tests.model.heads import (
    assert_equal,
    assert_equal_to_rounding,
    dense,
    inputs_of,
    outputs_and_gradients,
    rows_of,
    splash,
)
from tests.run_small import ROOT, environment


@pytest.mark.parametrize("reach", [None, 20])
@pytest.mark.parametrize("within", [False, True])
def test_splash_matches_the_reference_forward_and_backward(within: bool, reach: int | None) -> None:
    padding_mask, document_ids = rows_of(256)
    rows = padding_mask, document_ids if within else None
    found = outputs_and_gradients(partial(splash, reach=reach), inputs_of(256), *rows, reach)
    assert_equal(found, outputs_and_gradients(partial(dense, reach=reach), inputs_of(256), *rows, reach))


@pytest.mark.parametrize("within", [False, True])
def test_splash_in_bfloat16_matches_the_reference_up_to_rounding(within: bool) -> None:
    padding_mask, document_ids = rows_of()
    rows = padding_mask, document_ids if within else None
    inputs = inputs_of(dtype="bfloat16")
    found, rounded = (outputs_and_gradients(function, inputs, *rows) for function in (splash, xla_attention))
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("bfloat16")}
    wide = [x.astype(jnp.float32) for x in inputs]
    assert_equal_to_rounding(found, rounded, outputs_and_gradients(xla_attention, wide, *rows))


def test_splash_with_several_tiles_per_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlm_jax.model.kernels._SPLASH_TILES", (128,))
    inputs, rows = inputs_of(384, heads=1), rows_of(384)
    assert_equal(
        outputs_and_gradients(splash, inputs, *rows),
        outputs_and_gradients(xla_attention, inputs, *rows),
    )


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("reach", [None, 5])
def test_cudnn_gets_documents_and_reach_as_a_mask(
    monkeypatch: pytest.MonkeyPatch, within: bool, reach: int | None
) -> None:
    """JAX's own implementation answers the call, because cuDNN needs a GPU."""
    real = jax.nn.dot_product_attention

    def answered(*heads: Array, implementation: str, **told: Array) -> Array:
        assert implementation == "cudnn"
        assert ("mask" in told) == (within or reach is not None)
        return real(*heads, implementation="xla", **told)

    monkeypatch.setattr(jax.nn, "dot_product_attention", answered)
    padding_mask, document_ids = rows_of()
    # cuDNN and the reference differ for a row that is all padding.
    padding_mask = padding_mask.at[2].set(padding_mask[3])
    rows = padding_mask, document_ids if within else None
    found, expected = (
        outputs_and_gradients(partial(function, reach=reach), inputs_of(), *rows, reach)
        for function in (cudnn_attention, dense)
    )
    keyed = padding_mask[:, :, None, None]
    assert_equal((found[0] * keyed, found[1]), (expected[0] * keyed, expected[1]))


@pytest.mark.parametrize("function", [xla_attention, splash], ids=["xla", "splash"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_of_only_padding_stay_finite(function: Callable[..., Array], dtype: str) -> None:
    *heads, weights = inputs_of(dtype=dtype)
    padding_mask, document_ids = jnp.zeros((4, 128), bool), jnp.zeros((4, 128), jnp.int32)

    def total(*heads: Array) -> Array:
        return jnp.sum(function(*heads, padding_mask, document_ids) * weights)

    for leaf in jax.tree.leaves(jax.value_and_grad(total, argnums=(0, 1, 2))(*heads)):
        assert jnp.isfinite(leaf).all()


def child(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a new process, because this one has only simulated devices and compiles without optimization."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment(optimised=True) | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )


CUDNN_AND_THE_REFERENCE = """
import jax, jax.numpy as jnp
from mlm_jax.model.attention import xla_attention
from mlm_jax.model.kernels import cudnn_attention, cudnn_obstacle
from tests.model.heads import assert_equal_to_rounding, inputs_of, outputs_and_gradients, rows_of

assert cudnn_obstacle(jax.devices()[0], length=512, head_dim=64, dtype="bfloat16") is None
inputs = inputs_of(512, dtype="bfloat16")
wide = [x.astype(jnp.float32) for x in inputs]
padding_mask, document_ids = rows_of(512)
# cuDNN and the reference differ for a row that is all padding.
some = padding_mask.at[2].set(padding_mask[3])
for documents in (None, document_ids):
    # Full float32 precision, because on a GPU products of float32 are rounded to fewer bits by default.
    with jax.default_matmul_precision("highest"):
        exact = outputs_and_gradients(xla_attention, wide, some, documents)
    found, rounded = (
        outputs_and_gradients(function, inputs, some, documents) for function in (cudnn_attention, xla_attention)
    )
    read = some[:, :, None, None]
    assert_equal_to_rounding(*((out * read, gradients) for out, gradients in (found, rounded, exact)))
    empty = outputs_and_gradients(cudnn_attention, inputs, padding_mask, documents)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(empty))
"""


@pytest.mark.skipif(
    shutil.which("nvidia-smi") is None
    or not any(find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)),
    reason="no NVIDIA GPU with jax[cuda], and cuDNN runs nowhere else",
)
def test_cudnn_on_a_gpu_matches_the_reference_forward_and_backward() -> None:
    ended = child(CUDNN_AND_THE_REFERENCE, JAX_PLATFORMS="cuda")
    assert ended.returncode == 0, ended.stderr


STEP_OF_BERT_BASE = """
import json
from dataclasses import replace
from jax.experimental import mesh_utils, topologies
from jax.sharding import AxisType, Mesh
from mlm_jax.config import ComputeConfig, DataConfig, TrainConfig
from mlm_jax.config.masking import MaskingConfig
from mlm_jax.config.presets import PRESETS
from mlm_jax.step.program import build_program
from mlm_jax.parallel.sharding import MESH_AXES

topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4")
devices = mesh_utils.create_device_mesh((8, 1, 1), topology.devices, allow_split_physical_axes=True)
mesh = Mesh(devices, MESH_AXES, axis_types=(AxisType.Auto,) * 3)
model = replace(PRESETS["bert_base_en_uncased"], pooler=False, attention_dropout_rate=0.0)
masking = MaskingConfig(vocabulary_size=model.vocabulary_size, mask_token_id=103, mask_selection_length=77)
for name in ("auto", "xla"):
    config = TrainConfig(
        model=model,
        data=DataConfig(sequence_length=512, attend_within_documents=True),
        compute=ComputeConfig(dtype="bfloat16", attention=name),
        batch_size=64,
    )
    step = build_program(config, masking, mesh, 102).compiled_train
    kernels = [kernel for kernel in ("fwd", "dq", "dkv") if f"splash_mha_{kernel}" in step.as_text()]
    temporary = step.memory_analysis().temp_size_in_bytes
    print(json.dumps({"kernels": kernels, "temporary": temporary}))
"""


@pytest.mark.release
@pytest.mark.skipif(
    find_spec("libtpu") is None, reason="no libtpu, which compiles for TPUs that are not there"
)
def test_a_step_compiled_for_a_tpu_uses_splash_and_needs_less_memory() -> None:
    # The first two: no TPU is needed, and another process may be compiling at the same time.
    ended = child(STEP_OF_BERT_BASE, TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    assert ended.returncode == 0, ended.stderr
    splash_step, xla_step = map(json.loads, ended.stdout.splitlines())
    assert splash_step["kernels"] == ["fwd", "dq", "dkv"]
    assert xla_step["kernels"] == []
    assert splash_step["temporary"] < 0.85 * xla_step["temporary"]
