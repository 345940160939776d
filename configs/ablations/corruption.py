"""Replacement of masked tokens: 80 % [MASK], 10 % random, 10 % unchanged (BERT), or always [MASK].

    mlm-jax ablate ablations/corruption --output runs/ablations/corruption --seeds 3

`tiny_wiki.py` has the commands that prepare the data.

Wettig et al. 2022 found that always [MASK] is as good as 80/10/10 or better.

Result: 4.95 and 5.09 nats, no difference seen; 6 runs of 75 s on two CPU cores.
"""

from dataclasses import replace

from mlm_jax.config import TrainConfig
from mlm_jax.config.masking import MaskingRecipe
from mlm_jax.configs.ablations.tiny_wiki import config as parent


def trials() -> dict[str, TrainConfig]:
    """Both trials are evaluated with [MASK] only, because the second never learns to predict unchanged tokens."""
    always = MaskingRecipe(mask_token_rate=1.0, random_token_rate=0.0)
    base = replace(parent(), eval_masking=always)
    return {"mask_80_10_10": base, "mask_always": replace(base, masking=always)}
