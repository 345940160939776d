"""Dynamic masking on the device: masks rows of token ids. Needs only jax.

In: PRNG keys, integer token ids, a `MaskingConfig`. Out: `MaskedTokens`.
Read `masking.py` first. Each file uses only files to its right:

    masking.py › selection.py (positions) › spans.py › words.py › counting.py
                                          › quotas.py (numbers of positions) › rates.py
               › replacement.py (tokens at these positions)
"""

from mlm_jax.masking.masking import MaskedTokens, example_keys, mask_tokens
from mlm_jax.masking.rates import SelectionTable, selection_table

__all__ = ["MaskedTokens", "SelectionTable", "example_keys", "mask_tokens", "selection_table"]
