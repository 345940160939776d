"""Token ids to masked rows, on the device. Needs only jax and ids.

In: PRNG keys, int token ids, a `MaskingConfig`. Out: `MaskedTokens`.
Read `masking.py` first.
"""

from mlm_jax.masking.masking import MaskedTokens, example_keys, mask_tokens
from mlm_jax.masking.rates import SelectionTable, selection_table

__all__ = ["MaskedTokens", "SelectionTable", "example_keys", "mask_tokens", "selection_table"]
