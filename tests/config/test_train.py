"""Configs reject invalid values by name, and survive a round trip through JSON."""

import json
import math
import subprocess
import sys
from dataclasses import asdict, replace
from typing import get_args, get_type_hints

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlm_jax.config import (
    BertConfig,
    ComputeConfig,
    DataConfig,
    DistributedConfig,
    MeshConfig,
    OptimizerConfig,
    TrainConfig,
)
from mlm_jax.config.masking import MaskingRecipe
from mlm_jax.config.settings import changed_settings, from_json, to_json
from mlm_jax.errors import InputError

JOINED = DistributedConfig(coordinator="host:8476", num_processes=2, process_id=1)

configs = st.builds(
    TrainConfig,
    model=st.builds(BertConfig, num_heads=st.sampled_from([1, 12]), pooler=st.booleans()),
    masking=st.builds(MaskingRecipe, mask_selection_length=st.none() | st.integers(1, 99)),
    optimizer=st.builds(
        OptimizerConfig,
        learning_rate=st.floats(1e-9, 1.0),
        max_grad_norm=st.none() | st.floats(1e-3, 1e3),
        freeze=st.lists(st.text(max_size=5), max_size=3).map(tuple),
    ),
    mesh=st.builds(MeshConfig, data=st.sampled_from([-1, 1, 8])),
    seed=st.integers(0, 2**32 - 1),
    init_from=st.none() | st.text(min_size=1),
)


def test_scalars_of_numpy_become_numbers() -> None:
    config = TrainConfig(num_steps=np.int64(7), optimizer=OptimizerConfig(learning_rate=np.float64(1e-3)))
    assert (type(config.num_steps), type(config.optimizer.learning_rate)) == (int, float)
    assert from_json(TrainConfig, to_json(config)) == config
    with pytest.raises(InputError, match=r"num_steps = 7\.5: must be a whole number"):
        TrainConfig(num_steps=np.float32(7.5))


@given(configs)
def test_json_round_trip(config: TrainConfig) -> None:
    assert from_json(TrainConfig, to_json(config)) == config


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            ("optimizer", "learning_rat"),
            1.0,
            r"optimizer\.learning_rat: no such setting; did you mean 'learning_rate'",
        ),
        (("num_stepz",), 3, r"num_stepz: no such setting; did you mean 'num_steps'"),
        (("num_steps",), "3", r"num_steps = '3': must be a whole number"),
        (("num_steps",), True, r"num_steps = True: must be a whole number"),
        (
            ("optimizer", "name"),
            "sgd",
            r"OptimizerConfig\.name = 'sgd': must be one of 'adamw', 'stable_adamw', 'lamb', 'adafactor', 'muon'",
        ),
        (
            ("optimizer", "learning_rate"),
            "fast",
            r"OptimizerConfig\.learning_rate = 'fast': must be a number",
        ),
        (("data",), 7, r"data\.?: must be an object"),
    ],
)
def test_json_with_a_wrong_setting_is_rejected(path: tuple[str, ...], value: object, message: str) -> None:
    tree = asdict(TrainConfig())
    node = tree
    for name in path[:-1]:
        node = node[name]
    node[path[-1]] = value
    with pytest.raises(InputError, match=message):
        from_json(TrainConfig, json.dumps(tree))


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (BertConfig(), {"num_heads": 5}, r"num_heads = 5: must be a divisor of hidden_dim = 768"),
        (BertConfig(), {"dropout_rate": 1.0}, r"dropout_rate = 1.0: must be in \[0, 1\)"),
        (BertConfig(), {"activation": "relu"}, r"activation = 'relu': must be one of 'gelu', 'gelu_tanh'"),
        (BertConfig(), {"pooler": 1}, r"pooler = 1: must be True or False"),
        (DataConfig(), {"order": "window"}, r"order = 'window': .*; did you mean 'windowed'"),
        (DataConfig(), {"packing": "pack"}, r"packing = 'pack': .*; did you mean 'packed'"),
        (OptimizerConfig(), {"schedule": "cosin"}, r"schedule = 'cosin': .*; did you mean 'cosine'"),
        (
            OptimizerConfig(),
            {"momentum": 0.9},
            "momentum = 0.9: must be None with name 'adamw', which has none",
        ),
        (
            OptimizerConfig(beta2=0.98),
            {"name": "adafactor"},
            "beta2 = 0.98: must be None with name 'adafactor'",
        ),
        (OptimizerConfig(name="muon"), {"momentum": 1.0}, r"momentum = 1.0: must be in \[0, 1\)"),
        (OptimizerConfig(), {"epsilon": 0.0}, "epsilon = 0.0: must be above 0"),
        (OptimizerConfig(), {"layer_rate_decay": 0.0}, r"layer_rate_decay = 0.0: must be in \(0, 1\]"),
        (OptimizerConfig(), {"beta2": 1.0}, r"beta2 = 1.0: must be in \[0, 1\)"),
        (
            OptimizerConfig(),
            {"freeze": "encoder/*"},
            r"freeze = 'encoder/\*': must be a tuple, each a string",
        ),
        (OptimizerConfig(), {"schedule": "trapezoidal"}, r"cooldown_steps = 0: must be at least 1 with"),
        (OptimizerConfig(), {"cooldown_steps": 5}, r"cooldown_steps = 5: must be 0 with schedule 'linear'"),
        (TrainConfig(), {"num_steps": 2.5}, r"num_steps = 2.5: must be a whole number"),
        (TrainConfig(), {"eval_batches": "all"}, r"eval_batches = 'all': must be a whole number or None"),
        (TrainConfig(), {"model": None}, r"model = None: must be a BertConfig"),
        (BertConfig(), {"num_layers": 0}, r"num_layers = 0: must be at least 1"),
        (DataConfig(), {"sequence_length": 2}, r"sequence_length = 2: must be at least 3"),
        (OptimizerConfig(), {"learning_rate": 0.0}, r"learning_rate = 0.0: must be above 0"),
        (
            OptimizerConfig(),
            {"beta2": 1 - 1e-9},
            r"beta2 = 0.999999999: must be in \[0, 1\), in float32, too",
        ),
        (BertConfig(), {"dropout_rate": 1 - 1e-9}, r"dropout_rate = 0.999999999: must be in \[0, 1\), in"),
        (BertConfig(), {"layer_norm_epsilon": 0.0}, "layer_norm_epsilon = 0.0: must be above 0"),
        (
            BertConfig(),
            {"head_layer_norm_epsilon": -1e-5},
            "head_layer_norm_epsilon = -1e-05: must be above 0",
        ),
        (BertConfig(), {"initializer_stddev": 0.0}, "initializer_stddev = 0.0: must be above 0"),
        (TrainConfig(), {"num_steps": 2**31}, r"num_steps = 2147483648: must be below 2\*\*31"),
        (
            DataConfig(attend_within_documents=True),
            {"packing": "document"},
            r"attend_within_documents = True: must be False with packing 'document'",
        ),
        (MeshConfig(), {"fsdp": -1}, "the only axis of size -1"),
        (MeshConfig(), {"tensor": 0}, "tensor = 0"),
        (DistributedConfig(), {"timeout_seconds": 5}, "timeout_seconds = 5: must be at least 6"),
        (DistributedConfig(), {"process_id": 1}, "must be given together, or none of them"),
        (JOINED, {"coordinator": "host"}, "coordinator = 'host': must be host:port of process 0"),
        (JOINED, {"coordinator": "host:99999"}, "coordinator = 'host:99999': must be host:port"),
        (JOINED, {"num_processes": 0}, "num_processes = 0: must be at least 1"),
        (JOINED, {"process_id": 2}, r"process_id = 2: must be in \[0, num_processes = 2\)"),
        (JOINED, {"process_id": -1}, r"process_id = -1: must be in \[0, num_processes = 2\)"),
        (TrainConfig(), {"seed": -1}, "seed = -1"),
        (
            TrainConfig(),
            {"accumulation_steps": 5},
            "accumulation_steps = 5: must be a divisor of batch_size = 32",
        ),
        (
            TrainConfig(),
            {"data": DataConfig(sequence_length=513)},
            "sequence_length = 513: must be at most .* = 512",
        ),
        (
            TrainConfig(),
            {"optimizer": OptimizerConfig(warmup_steps=1001)},
            "= 1001: must be at most num_steps = 1000",
        ),
        (TrainConfig(), {"batch_size": 10**14}, "batch_size = 100000000000000: must be at most 16,777,216"),
        (MaskingRecipe(), {"mask_selection_length": 10**12}, "= 1000000000000: must be at most 1,048,576"),
        (
            TrainConfig(optimizer=OptimizerConfig(warmup_steps=1)),
            {"num_steps": 1},
            "warmup_steps = 1: must be 0 with num_steps = 1: a warm-up begins with a learning rate of 0",
        ),
    ],
)
def test_errors_name_the_field_the_value_and_what_is_allowed(
    config: object, changes: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        replace(config, **changes)  # type: ignore[type-var]


FLOATS = [
    (type(config), name)
    for config in (BertConfig(positions="rotary"), OptimizerConfig(), MaskingRecipe())
    for name, kind in get_type_hints(type(config)).items()
    if kind is float or float in get_args(kind)
]


@pytest.mark.parametrize(("settings", "name"), FLOATS, ids=lambda value: getattr(value, "__name__", value))
def test_settings_are_finite_in_float32(settings: type, name: str) -> None:
    for value, allowed in (
        *((value, "a finite number") for value in (math.nan, math.inf, -math.inf)),
        *((value, "0, or 1.2e-38 to 3.4e+38 in size") for value in (1e39, 10**400, 1e-46, -1e300)),
    ):
        with pytest.raises(InputError, match=rf"^{settings.__name__}\.{name} = .*: must be ") as refused:
            settings(**{name: value})
        assert allowed in str(refused.value)
        assert "\n" not in str(refused.value)


def test_every_class_of_settings_checks_its_floats() -> None:
    """No other class has a float field, or it belongs in the test above."""
    others = (DataConfig, MeshConfig, ComputeConfig, DistributedConfig, TrainConfig)
    kinds = {kind for settings in others for kind in get_type_hints(settings).values()}
    assert not [kind for kind in kinds if kind is float or float in get_args(kind)]
    assert len(FLOATS) > 15


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", f"1{'0' * 400}"])
def test_json_numbers_that_float32_cannot_hold_are_rejected(number: str) -> None:
    text = to_json(TrainConfig()).replace('"learning_rate": 0.0001', f'"learning_rate": {number}')
    with pytest.raises(InputError, match=r"OptimizerConfig\.learning_rate = .*must be"):
        from_json(TrainConfig, text)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"mask_selection_rate": 0.0}, "mask_selection_rate = 0.0: must be above 0"),
        ({"mask_selection_rate": 0.0, "selection": "bert"}, "mask_selection_rate = 0.0: must be above 0"),
        (
            {"rate_schedule": "linear", "final_mask_selection_rate": 0.0},
            "final_mask_selection_rate = 0.0: must be above 0",
        ),
        (
            {"rate_schedule": "cosine", "final_mask_selection_rate": 0.3, "mask_selection_rate": 0.0},
            "mask_selection_rate = 0.0: must be above 0",
        ),
        (
            {"selection": "bernoulli", "mask_selection_rate": 1e-10},
            r"mask_selection_rate = 1e-10: must be at least 2\*\*-30",
        ),
        ({"mask_token_rate": 0.0, "random_token_rate": 0.0}, "mask_token_rate = 0.0: must be above 0 if"),
    ],
)
def test_masks_from_which_nothing_is_learned_are_rejected(recipe: dict, message: str) -> None:
    masking = MaskingRecipe(**recipe)
    # Evaluations have no schedule.
    for name in ["masking"] if "rate_schedule" in recipe else ["masking", "eval_masking"]:
        with pytest.raises(InputError, match=f"^{name}: MaskingRecipe.{message}"):
            TrainConfig(**{name: masking})


@pytest.mark.parametrize("selection", ["ceil", "bert"])
@pytest.mark.parametrize("rate", [0.0, 0.15, 0.3, 0.55, 1.0])
@pytest.mark.parametrize("length", [3, 20, 102, 128, 512])
def test_the_derived_selection_length_is_what_the_rule_needs(
    selection: str, rate: float, length: int
) -> None:
    recipe = MaskingRecipe(mask_selection_rate=rate, selection=selection)
    if selection == "ceil":
        needed = int(np.ceil(np.float32(length - 2) * np.float32(rate)))
    else:
        needed = min(length - 2, max(1, round(length * rate)))
    assert recipe.selection_length(length) == max(1, needed)


def test_config_data_and_package_do_not_import_jax() -> None:
    modules = "mlm_jax, mlm_jax.config, mlm_jax.config.presets, mlm_jax.config.files, mlm_jax.data.prepare"
    program = f"import sys, {modules}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_changed_settings_have_dotted_names() -> None:
    changed = replace(TrainConfig(), optimizer=OptimizerConfig(schedule="cosine"), num_steps=7)
    assert changed_settings(TrainConfig(), changed) == {
        "optimizer.schedule": ("linear", "cosine"),
        "num_steps": (1000, 7),
    }
