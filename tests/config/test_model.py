"""Model configs: impossible shapes and settings without effect raise errors that name them."""

from dataclasses import replace
from typing import Any

import pytest

from mlm_jax.config.model import BertConfig
from mlm_jax.errors import InputError

ROTARY = BertConfig(positions="rotary")
LOCAL = replace(ROTARY, local_attention_window=128, global_attention_every=3)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (BertConfig(), {"activation": "gegelu"}, r"activation = 'gegelu': .*; did you mean 'geglu'"),
        (BertConfig(), {"head_activation": "geglu"}, r"head_activation = 'geglu': must be one of 'gelu', "),
        (BertConfig(), {"norm": "rmsnorm"}, r"norm = 'rmsnorm': .*; did you mean 'rms_norm'"),
        (
            BertConfig(),
            {"norm_placement": "before"},
            r"norm_placement = 'before': must be one of 'post', 'pre'",
        ),
        (BertConfig(), {"num_segments": -1}, r"num_segments = -1: must be at least 0"),
        (
            BertConfig(),
            {"rotary_base": 500.0},
            r"rotary_base = 500.0: .* default, 10000.0, with positions 'learned'",
        ),
        (
            LOCAL,
            {"positions": "none", "local_rotary_base": 5.0},
            r"local_rotary_base = 5.0: must be None with",
        ),
        (ROTARY, {"rotary_base": 1.0}, r"rotary_base = 1.0: must be above 1"),
        (LOCAL, {"local_rotary_base": 0.5}, r"local_rotary_base = 0.5: must be above 1"),
        (
            ROTARY,
            {"local_rotary_base": 5.0},
            r"local_rotary_base = 5.0: must be None without local_attention_",
        ),
        (
            ROTARY,
            {"num_heads": 256},
            r"num_heads = 256: must be such that hidden_dim / num_heads = 3 is even",
        ),
        (
            ROTARY,
            {"global_attention_every": 3},
            r"global_attention_every = 3: must be 1 without local_attention_",
        ),
        (LOCAL, {"global_attention_every": 1}, r"global_attention_every = 1: must be at least 2 with"),
        (LOCAL, {"global_attention_every": 0}, r"global_attention_every = 0: must be at least 1"),
        (LOCAL, {"num_layers": 1}, r"num_layers = 1: must be at least 2 with local_attention_window"),
        (LOCAL, {"local_attention_window": 127}, r"local_attention_window = 127: must be even"),
        (LOCAL, {"local_attention_window": 0}, r"local_attention_window = 0: must be even and at least 2"),
        (LOCAL, {"local_attention_window": 1022}, r"local_attention_window = 1022: must be below 1022"),
    ],
)
def test_impossible_and_ineffective_settings_are_rejected(
    config: BertConfig, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as refused:
        replace(config, **changes)
    assert "\n" not in str(refused.value)


def test_the_widest_window_excludes_a_single_pair_of_tokens() -> None:
    assert replace(LOCAL, local_attention_window=1020).local_attention_window == 1020


def test_geglu_and_swiglu_are_gated() -> None:
    kinds = ("gelu", "gelu_tanh", "geglu", "swiglu")
    assert [replace(LOCAL, activation=kind).gated for kind in kinds] == [False, False, True, True]
