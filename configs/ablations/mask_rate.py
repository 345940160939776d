"""How many tokens to mask: 15, 30, 40 or 80 %.

python scripts/ablate.py configs/ablations/mask_rate.py --output runs/ablations/mask_rate --seeds 3

Wettig et al. 2022 ("Should You Mask 15% in Masked Language Modeling?") found 40 % better than 15 % for a large BERT,
and even 80 % to keep most of what is learnt; smaller models were best at lower rates.

Measured: 4.60 nats at 15 %, 4.28 at 30 %, 4.24 at 40 %, 4.83 at 80 %, all evaluated at 15 %; 12 runs of 75 to 94 s
on two CPU cores.
"""

from dataclasses import replace

from mlm_jax.configs.ablations.tiny_wiki import config as parent

from mlm_jax.config import TrainConfig
from mlm_jax.config.masking import MaskingRecipe


def trials() -> dict[str, TrainConfig]:
    """The rate alone changes; a step has as many rows with each, so at a higher rate more predictions."""
    return {
        f"rate_{rate}": replace(parent(), masking=MaskingRecipe(mask_selection_rate=rate / 100))
        for rate in (15, 30, 40, 80)
    }
