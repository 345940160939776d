"""Number of positions to select in a row or document: looks up the number of its tokens in a `SelectionTable`."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Int

from mlm_jax.config.masking import MaskingConfig
from mlm_jax.masking.counting import count_true
from mlm_jax.masking.rates import SelectionTable


def row_quota(
    token_ids: Int[Array, " length"],
    selectable: Bool[Array, " length"],
    config: MaskingConfig,
    table: SelectionTable,
) -> Int[Array, ""]:
    """Returns the number of positions to select in the row, for selection "ceil" or "bert"."""
    if config.selection == "ceil":
        return table.selections[count_true(selectable)]
    real = count_true(token_ids != config.padding_token_id)
    return jnp.minimum(table.selections[real], count_true(selectable))


def document_ends(token_ids: Int[Array, " length"], config: MaskingConfig) -> Bool[Array, " length"]:
    """Returns True at the last token of each document; the last token of the row always ends a document."""
    return jnp.equal(token_ids, jnp.int32(config.document_end_id)).at[-1].set(True)


def document_quotas(
    token_ids: Int[Array, " length"],
    selectable: Bool[Array, " length"],
    config: MaskingConfig,
    table: SelectionTable,
) -> Int[Array, " length"]:
    """Returns the number of positions to select in each document, at the document's last token; 0 elsewhere."""
    ends = document_ends(token_ids, config)

    def count_since_last_end(counted: Bool[Array, " length"]) -> Int[Array, " length"]:
        total = jnp.cumsum(counted.astype(jnp.int32))
        return total - jnp.pad(jax.lax.cummax(jnp.where(ends, total, 0))[:-1], (1, 0))

    count = count_since_last_end(selectable)
    if config.selection == "ceil":
        quotas = table.selections[count]
    else:
        real = count_since_last_end(token_ids != config.padding_token_id)
        quotas = jnp.minimum(table.selections[real], count)
    return jnp.where(ends, quotas, 0)
