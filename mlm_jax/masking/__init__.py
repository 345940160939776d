"""Dynamic masking on the device: token ids to masked rows. Needs only jax.

In: PRNG keys, int token ids, a `MaskingConfig`. Out: `MaskedTokens`.
Read `masking.py` first, then downward; each file calls only files below it:

    masking.py › selection.py (which positions) › spans.py › words.py › counting.py
                                                › quotas.py (how many) › rates.py
               › replacement.py (which tokens stand there)
"""

from mlm_jax.masking.masking import MaskedTokens, example_keys, mask_tokens
from mlm_jax.masking.rates import SelectionTable, selection_table

__all__ = ["MaskedTokens", "SelectionTable", "example_keys", "mask_tokens", "selection_table"]
