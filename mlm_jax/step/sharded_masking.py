"""Masks a global batch, with each device masking its own rows."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from mlm_jax.config.masking import MaskingConfig
from mlm_jax.data.batches import Batch
from mlm_jax.masking.masking import MaskedTokens, mask_and_count
from mlm_jax.masking.rates import SelectionTable
from mlm_jax.parallel.sharding import partition_spec


def mask_rows(
    keys: Array,
    batch: Batch,
    masking: MaskingConfig,
    table: SelectionTable | None = None,
    stage: Any = 0,
) -> tuple[MaskedTokens, Array]:
    """Applies `mask_and_count` to keys [B] and a batch of B rows that are split over the mesh.

    No device waits for another. The partitioner would create one loop over words or spans for all rows, and the devices
    would communicate in every iteration to decide if it continues.
    """

    def mask_own_rows(
        keys: Array, token_ids: Array, words: Array | None, table: SelectionTable | None, stage: Array
    ) -> Any:
        return mask_and_count(keys, token_ids, masking, table, stage, words)

    words = batch.continues_word if masking.words_from_data else None
    inputs = (keys, batch.token_ids, words, table, jnp.asarray(stage))
    if jax.sharding.get_abstract_mesh().empty:
        return mask_own_rows(*inputs)
    rows, whole = partition_spec(("batch",)), partition_spec(())
    return jax.shard_map(
        mask_own_rows, in_specs=(rows, rows, rows, whole, whole), out_specs=rows, check_vma=False
    )(*inputs)
