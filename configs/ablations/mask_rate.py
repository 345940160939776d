"""Masking rate: 15, 30, 40 or 80 %.

    mlm-jax ablate ablations/mask_rate --output runs/ablations/mask_rate --seeds 3

`tiny_wiki.py` has the commands that prepare the data.

Wettig et al. 2022 ("Should You Mask 15% in Masked Language Modeling?") found 40 % better than 15 % for a large BERT,
and that even 80 % preserves most of the performance; smaller models were best at lower rates.

Result: 4.60 nats at 15 %, 4.28 at 30 %, 4.24 at 40 %, 4.83 at 80 %, all evaluated at 15 %; 12 runs of 75 to 94 s on
two CPU cores.
"""

from dataclasses import replace

from mlm_jax.config import TrainConfig
from mlm_jax.config.masking import MaskingRecipe
from mlm_jax.configs.ablations.tiny_wiki import config as parent


def trials() -> dict[str, TrainConfig]:
    """Only the rate differs. Steps have equally many rows, and therefore more predictions at higher rates."""
    return {
        f"rate_{rate}": replace(parent(), masking=MaskingRecipe(mask_selection_rate=rate / 100))
        for rate in (15, 30, 40, 80)
    }
