"""A tiny masked LM with one vocabulary for all tests of `use` and `probes`, so that they share compiled programs."""

from functools import cache
from pathlib import Path
from typing import Any

from mlm_jax.config import BertConfig
from mlm_jax.formats.model_folder import random_model
from mlm_jax.text.tokenizer import Tokenizer
from mlm_jax.use.masked_lm import MaskedLM

FRUIT = ["red apples are sweet", "green apples are sour", "blue berries are small", "the sea is blue"]
GOOD = ["a lovely film", "sweet and funny", "what a joy to see", "lovely and sweet", "a joy"]
BAD = ["a dull film", "cold and empty", "what a waste of time", "dull and cold", "a waste"]
JOBS = [
    f"{who} {can} {job}"
    for who in ("he", "she")
    for can in ("can work as a", "was once a")
    for job in ("doctor", "pilot", "nurse", "dancer", "baker", "singer")
]


@cache
def tiny_tokenizer() -> Tokenizer:
    return Tokenizer.train(FRUIT + GOOD + BAD + JOBS, 200)


def tiny_masked_lm(**settings: Any) -> MaskedLM:
    """Returns a new masked LM with random parameters."""
    tokenizer = tiny_tokenizer()
    config = BertConfig(
        **{
            "vocabulary_size": tokenizer.vocabulary_size,
            "num_layers": 1,
            "hidden_dim": 32,
            "num_heads": 2,
            "intermediate_dim": 64,
            "max_sequence_length": 40,
            "dropout_rate": 0.0,
            "attention_dropout_rate": 0.0,
            # With 0.02, attention of this width would learn nothing for thousands of steps.
            "initializer_stddev": 0.2,
            "pooler": False,
        }
        | settings
    )
    stored = random_model(config, tokenizer, 0)
    return MaskedLM(stored.config, stored.params, stored.tokenizer)


@cache
def trained_masked_lm() -> MaskedLM:
    """Returns a model that has learned `FRUIT`. Do not change it."""
    model = tiny_masked_lm()
    model.fit(FRUIT * 6, num_steps=150, batch_size=8, learning_rate=1e-2)
    return model


def encoder_folder(folder: Path, **settings: Any) -> Path:
    """Writes a random masked LM to `folder`."""
    tiny_masked_lm(**settings).save(folder)
    return folder
