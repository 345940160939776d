"""Masking rates that follow a schedule, and one compiled function for all rates."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlm_jax.config.masking import STAGES, MaskingConfig, MaskingRecipe
from mlm_jax.masking.masking import example_keys, mask_and_count, mask_tokens
from mlm_jax.masking.rates import selection_table, stage_at
from mlm_jax.step.program import build_program
from tests.masking.test_masking import CONFIG, assert_same, rows_of
from tests.small import CONFIG as RUN
from tests.small import MASKING, SEP, batch_of, program_of

SCHEDULED = {"rate_schedule": "linear", "mask_selection_rate": 0.4, "final_mask_selection_rate": 0.1}


def test_a_schedule_runs_from_the_first_rate_to_the_last() -> None:
    linear = MaskingRecipe(**SCHEDULED)
    rates = linear.stage_rates()
    assert (len(rates), rates[0], rates[-1]) == (STAGES, 0.4, 0.1)
    np.testing.assert_allclose(np.diff(rates), -0.3 / 255, rtol=1e-5)
    cosine = replace(linear, rate_schedule="cosine").stage_rates()
    np.testing.assert_allclose(cosine, 0.25 + 0.15 * np.cos(np.pi * np.arange(256) / 255), atol=1e-9)
    assert cosine[0] == 0.4
    assert cosine[-1] == 0.1
    assert MaskingRecipe(mask_selection_rate=0.3).stage_rates() == (0.3,)


@settings(max_examples=40)
@given(st.integers(1, 2**33), st.floats(0, 1), st.sampled_from(["constant", "cosine"]))
def test_stages_are_equally_long_in_runs_of_any_length(num_steps: int, share: float, schedule: Any) -> None:
    recipe = (
        MaskingRecipe(**SCHEDULED | {"rate_schedule": schedule})
        if schedule != "constant"
        else MaskingRecipe()
    )
    table = selection_table(config_of(recipe), 4)
    step = min(int(share * num_steps), 2**31 - 1)
    stage = int(stage_at(jnp.int32(step), num_steps, table))
    assert stage == min(step * len(table.selections) // num_steps, len(table.selections) - 1)
    assert recipe.rate_at(step, num_steps) == recipe.stage_rates()[stage]


def config_of(recipe: MaskingRecipe, **changes: Any) -> MaskingConfig:
    given = {
        name: getattr(CONFIG, name) for name in ("vocabulary_size", "mask_token_id", "unselectable_token_ids")
    }
    return MaskingConfig(**vars(recipe) | given | {"mask_selection_length": 25} | changes)


@pytest.mark.slow
@pytest.mark.parametrize("selection", ["ceil", "bert", "bernoulli"])
def test_one_compiled_function_serves_all_rates_and_stages(selection: Any) -> None:
    compiled = 0
    base = config_of(MaskingRecipe(selection=selection, **SCHEDULED))

    def mask(keys: Any, ids: Any, table: Any, stage: Any) -> Any:
        nonlocal compiled
        compiled += 1
        return mask_and_count(keys, ids, base, table, stage)

    mask = jax.jit(mask)
    ids, keys = rows_of(3, 6, 40), example_keys(0, 0, np.arange(6))
    scheduled = selection_table(base, 40)
    for stage in (0, 128, 255):
        constant = config_of(
            MaskingRecipe(selection=selection, mask_selection_rate=base.stage_rates()[stage])
        )
        ours = mask(keys, ids, scheduled, jnp.int32(stage))
        expected, wanted = mask_and_count(keys, ids, constant)
        assert_same(ours[0], expected)
        np.testing.assert_array_equal(ours[1], wanted)
        for rates in ({"mask_token_rate": 1.0, "random_token_rate": 0.0}, {"mask_token_rate": 0.0}):
            changed = replace(base, **rates)
            assert_same(
                mask(keys, ids, selection_table(changed, 40), stage)[0],
                mask_tokens(keys, ids, replace(constant, **rates)),
            )
    only_masks = mask(
        keys, ids, selection_table(replace(base, mask_token_rate=1.0, random_token_rate=0.0), 40), 0
    )[0]
    np.testing.assert_array_equal((only_masks.token_ids == 4).sum(1), only_masks.mask_weights.sum(1))
    # A stage is an int32, or a Python int, which is weakly typed.
    assert compiled == 2


def test_a_table_for_other_rows_is_rejected() -> None:
    ids, keys = rows_of(3, 6, 40), example_keys(0, 0, np.arange(6))
    with pytest.raises(
        ValueError, match=r"table.selections has shape \(1, 40\): must be .* 'ceil', for rows of 40 tokens"
    ):
        mask_tokens(keys, ids, CONFIG, selection_table(CONFIG, 39))
    with pytest.raises(ValueError, match=r"table.selections"):
        mask_tokens(keys, ids, CONFIG, selection_table(replace(CONFIG, selection="bernoulli"), 40))


@pytest.mark.slow
def test_a_run_follows_its_schedule_and_is_evaluated_at_the_usual_rate() -> None:
    recipe = replace(
        RUN.masking, **SCHEDULED | {"mask_selection_rate": 1.0, "final_mask_selection_rate": 0.2}
    )
    masking = replace(MASKING, **vars(recipe) | {"mask_selection_length": 24})
    usual = program_of()
    program = build_program(replace(RUN, masking=recipe), masking, usual.mesh, SEP, MASKING)
    state, masked = program.initial_state(), []
    for step in (0, 20, 39):
        # Of 40 steps and 256 stages: stages 0, 128 and 249.
        state = replace(state, step=jax.device_put(jnp.int32(step), state.step.sharding))
        state, metrics = program.train(state, program.put(batch_of(0)), program.stop_votes(False))
        masked.append(int(metrics.masked_tokens))
    counts = [22] * 8 + [17] * 8
    assert masked == [
        sum(int(np.ceil(n * rate)) for n in counts)
        for rate in (1.0, 1 - 0.8 * 128 / 255, 1 - 0.8 * 249 / 255)
    ]
    params = usual.initial_state().params
    ours, theirs = (p.evaluate(params, p.put(batch_of(1))) for p in (program, usual))
    assert (float(ours.weight), float(ours.loss)) == (float(theirs.weight), float(theirs.loss))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"final_mask_selection_rate": 0.2},
            "final_mask_selection_rate = 0.2: must be None with rate_schedule 'constant'",
        ),
        (
            {"rate_schedule": "linear"},
            "final_mask_selection_rate = None: must be a rate with rate_schedule 'linear'",
        ),
        (
            {"rate_schedule": "cosine", "final_mask_selection_rate": 1.5},
            r"final_mask_selection_rate = 1.5: must be in \[0, 1\]",
        ),
        ({"rate_schedule": "stairs"}, "rate_schedule = 'stairs': must be one of"),
        (
            {"unit": "span", "selection": "bernoulli"},
            "unit = 'span': must be no span with selection 'bernoulli'",
        ),
        (
            {"quota": "document", "selection": "bernoulli"},
            "quota = 'document': must be 'row' with selection 'bernoulli'",
        ),
        ({"quota": "document"}, r"document_end_id = None: must be an id in \[0, 50\) with quota 'document'"),
        (
            {"vocabulary_size": 10**12},
            r"vocabulary_size = 1000000000000: must be below 2\*\*31: ids are int32",
        ),
        ({"quota": "document", "document_end_id": 50}, r"document_end_id = 50: must be"),
        (
            {"continuation_token_ids": (7, 50)},
            r"continuation_token_ids = \(7, 50\): must be ids in \[0, 50\)",
        ),
    ],
)
def test_settings_that_conflict_are_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)


def test_the_selection_length_has_room_for_the_largest_rate_and_for_documents() -> None:
    rising = MaskingRecipe(rate_schedule="linear", final_mask_selection_rate=0.3)
    assert rising.selection_length(128) == MaskingRecipe(mask_selection_rate=0.3).selection_length(128) == 38
    assert MaskingRecipe(**SCHEDULED).selection_length(128) == 51
    assert MaskingRecipe(quota="document").selection_length(128) == 19 + 4
