"""A small model, its data, and its train step on any mesh."""

from dataclasses import replace
from functools import cache
from typing import Any

import jax
import numpy as np

from mlm_jax.config import (
    BertConfig,
    ComputeConfig,
    DataConfig,
    MeshConfig,
    OptimizerConfig,
    TrainConfig,
)
from mlm_jax.config.masking import MaskingConfig
from mlm_jax.data.batches import Batch
from mlm_jax.parallel.sharding import make_mesh
from mlm_jax.step.program import Program, build_program

# Eight devices divide its heads, widths and vocabulary.
MODEL = BertConfig(
    vocabulary_size=256,
    num_layers=2,
    hidden_dim=64,
    num_heads=8,
    intermediate_dim=128,
    max_sequence_length=32,
    pooler=False,
)
CONFIG = TrainConfig(
    model=MODEL,
    data=DataConfig(sequence_length=24),
    optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=5),
    num_steps=40,
    batch_size=16,
    # As on chips.
    compute=ComputeConfig(scan_unroll=1),
    compilation_cache_dir=None,
)
SEP = 3
MASKING = MaskingConfig(
    vocabulary_size=256, mask_token_id=4, mask_selection_length=4, unselectable_token_ids=(0, 1, 2, 3, 4)
)


def batch_of(step: int, rows: int = 16, length: int = 24) -> Batch:
    """Returns rows of a language that can be learned: eight sentences; half of the rows end in padding."""
    sentences = np.random.default_rng(0).integers(5, 256, (8, length))
    ids = sentences[np.random.default_rng(step).integers(0, 8, rows)]
    ids[:, 0], ids[:, -1] = 2, SEP
    ids[rows // 2 :, -6:] = 0
    first = step * rows
    return Batch(
        ids.astype(np.int32), np.arange(first, first + rows, dtype=np.uint32), np.zeros(rows, np.uint32)
    )


@cache
def program_of(
    mesh: tuple[int, int, int] = (1, 1, 1), masks: MaskingConfig = MASKING, **changes: Any
) -> Program:
    config = replace(CONFIG, **changes)
    sizes = MeshConfig(data=mesh[0], fsdp=mesh[1], tensor=mesh[2])
    return build_program(config, masks, make_mesh(sizes, jax.devices()[: int(np.prod(mesh))]), SEP)


def losses_of(program: Program, steps: int) -> list[float]:
    state, losses = program.initial_state(), []
    with jax.set_mesh(program.mesh), jax.transfer_guard("disallow"):
        for step in range(steps):
            state, metrics = program.train(state, program.put(batch_of(step)), program.stop_votes(False))
            losses.append(metrics.loss)
    return [float(loss) for loss in jax.device_get(losses)]


def without_dropout(config: BertConfig = MODEL) -> BertConfig:
    return replace(config, dropout_rate=0.0, attention_dropout_rate=0.0)
