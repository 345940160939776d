"""What stands at a masked position: 80 % [MASK], 10 % a random token, 10 % the token itself (BERT); or always [MASK].

python scripts/ablate.py configs/ablations/corruption.py --output runs/ablations/corruption --seeds 3

Wettig et al. 2022 found always [MASK] to be as good as 80/10/10, or better.
"""

from dataclasses import replace

from tiny_wiki import config as parent

from mlm_jax.config import TrainConfig
from mlm_jax.masking_config import MaskingRecipe


def trials() -> dict[str, TrainConfig]:
    """Both are evaluated with 80/10/10, of which the second has never seen a random token."""
    return {
        "mask_80_10_10": parent(),
        "mask_always": replace(parent(), masking=MaskingRecipe(mask_token_rate=1.0, random_token_rate=0.0)),
    }
