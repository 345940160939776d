"""Masking unit: single tokens, whole words, or spans of words.

    mlm-jax ablate ablations/unit --output runs/ablations/unit --seeds 3

`tiny_wiki.py` has the commands that prepare the data.

Google's whole-word masking and SpanBERT (Joshi et al. 2020) were better after fine-tuning. Here, all trials are
evaluated on single masked tokens, on which the first trial is also trained.

Result: 4.60 nats with tokens, 5.50 with whole words, 5.68 with spans; 9 runs of 83 to 93 s on two CPU cores.
"""

from dataclasses import replace

from mlm_jax.config import TrainConfig
from mlm_jax.config.masking import MaskingRecipe
from mlm_jax.configs.ablations.tiny_wiki import config as parent


def trials() -> dict[str, TrainConfig]:
    """All trials mask equally many tokens."""
    return {
        "token": parent(),
        "whole_word": replace(parent(), masking=MaskingRecipe(unit="whole_word")),
        "span": replace(parent(), masking=MaskingRecipe(unit="span")),
    }
