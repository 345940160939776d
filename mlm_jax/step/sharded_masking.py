"""Masking the rows of a global batch, on each device its own."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from mlm_jax.config.masking import MaskingConfig
from mlm_jax.masking.masking import MaskedTokens, mask_tokens, wanted_selections
from mlm_jax.masking.rates import SelectionTable
from mlm_jax.parallel.sharding import partition_spec


def mask_rows(
    keys: Array, token_ids: Array, masking: MaskingConfig, law: SelectionTable | None = None, stage: Any = 0
) -> tuple[MaskedTokens, Array]:
    """What `mask_tokens` and `wanted_selections` give for keys [B] and int32 token_ids [B, L], split over the mesh.

    No device waits for another. To the partitioner the loop over the words or spans of a row would be one loop for all
    rows, of which the devices would tell each other before every turn whether it is to go on.
    """

    def of_device(keys: Array, token_ids: Array, law: SelectionTable | None, stage: Array) -> Any:
        masked = mask_tokens(keys, token_ids, masking, law, stage)
        return masked, wanted_selections(keys, token_ids, masking, law, stage)

    inputs = (keys, token_ids, law, jnp.asarray(stage))
    if jax.sharding.get_abstract_mesh().empty:
        return of_device(*inputs)
    rows, whole = partition_spec(("batch",)), partition_spec(())
    return jax.shard_map(of_device, in_specs=(rows, rows, whole, whole), out_specs=rows, check_vma=False)(
        *inputs
    )
