"""How tokens are masked, as frozen dataclasses that check themselves. Nothing here imports jax."""

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from mlm_jax.config.settings import check_types, require, require_positive, require_rate

Selection = Literal["ceil", "bernoulli", "bert"]
RandomPool = Literal["no_special", "full"]
MaskingUnit = Literal["token", "whole_word", "span"]
Quota = Literal["row", "document"]
RateSchedule = Literal["constant", "linear", "cosine"]

STAGES = 256
"""Of a run whose rate follows a schedule."""


@dataclass(frozen=True, kw_only=True)
class MaskingRecipe:
    """How a run masks, whatever its tokenizer. `mask_selection_length=None` derives it from rate and row length.

    `selection` is the law of how many positions are chosen, see `mlm_jax.masking.masking`; `random_pool` is what a
    random replacement is drawn from. `unit` is what is chosen as a whole: tokens, words, or spans of words, see
    `mlm_jax.masking.words`.

    `quota`: whose selectable positions the law counts. `"row"`: the row's. `"document"`: those of each document of
    a packed row, so that none is left without a mask; where the quotas add up to more than `mask_selection_length`,
    those of the row's last documents are cut. A document whose words are all longer than its quota has no mask; data
    without a [SEP] between documents have one document a row.

    `rate_schedule`: `"linear"` or `"cosine"` takes the rate from `mask_selection_rate` to
    `final_mask_selection_rate` over a run, in 256 stages of equally many steps, the first at the one and the last at
    the other. Yang, Zhang and Zhao (2023) let it fall.
    """

    mask_selection_rate: float = 0.15
    final_mask_selection_rate: float | None = None
    rate_schedule: RateSchedule = "constant"
    mask_selection_length: int | None = None
    mask_token_rate: float = 0.8
    random_token_rate: float = 0.1
    selection: Selection = "ceil"
    random_pool: RandomPool = "no_special"
    unit: MaskingUnit = "token"
    quota: Quota = "row"

    def __post_init__(self) -> None:
        check_types(self)
        require_rate(self, "mask_selection_rate", "mask_token_rate", "random_token_rate")
        # The slack is the rounding of two decimal fractions, as in 0.9 + 0.1.
        fits = self.mask_token_rate + self.random_token_rate <= 1.0 + 1e-9
        require(
            self, "random_token_rate", fits, f"at most 1 - mask_token_rate = {1 - self.mask_token_rate:.6g}"
        )
        if self.mask_selection_length is not None:
            require_positive(self, "mask_selection_length")
        self._check_schedule()
        # Spans and quotas need a budget; each position that is chosen by itself has none.
        by_itself = self.selection == "bernoulli"
        require(self, "unit", not (by_itself and self.unit == "span"), "no span with selection 'bernoulli'")
        require(
            self, "quota", not (by_itself and self.quota == "document"), "'row' with selection 'bernoulli'"
        )

    def _check_schedule(self) -> None:
        name, final = "final_mask_selection_rate", self.final_mask_selection_rate
        if self.rate_schedule == "constant":
            require(self, name, final is None, "None with rate_schedule 'constant'")
        else:
            require(self, name, final is not None, f"a rate with rate_schedule {self.rate_schedule!r}")
            require_rate(self, name)

    def stage_rates(self) -> tuple[float, ...]:
        """The rate of each stage of a run: one where it is constant, else `STAGES`."""
        first, last = self.mask_selection_rate, self.final_mask_selection_rate
        if last is None:
            return (first,)
        done = [stage / (STAGES - 1) for stage in range(1, STAGES - 1)]
        if self.rate_schedule == "cosine":
            done = [(1 - math.cos(math.pi * share)) / 2 for share in done]
        # Rounded, so that the last bit of a cosine, which libraries differ in, moves no mask.
        return (first, *(round(first + (last - first) * share, 9) for share in done), last)

    def rate_at(self, step: int, num_steps: int) -> float:
        """The rate at a step, from 0, of a run of `num_steps`."""
        rates = self.stage_rates()
        return rates[min(step * len(rates) // num_steps, len(rates) - 1)]

    def selection_length(self, sequence_length: int) -> int:
        """`mask_selection_length`, or where it is None what hardly a row of that length is clipped by.

        A row has at most `sequence_length` - 2 selectable tokens, of which the largest rate of the schedule asks for
        most. `"ceil"` and `"bert"` never select more than the result; `"bernoulli"` does so in a row of 30,000 (four
        standard deviations, for words of a variance that only fine-grained vocabularies exceed). With quota
        `"document"` there is room for rounding up: half a token a document, and one document every 16 tokens.
        """
        if self.mask_selection_length is not None:
            return self.mask_selection_length
        n, rate = sequence_length - 2, max(self.stage_rates())
        if self.selection == "ceil":
            wanted = math.ceil(np.float32(n) * np.float32(rate))
        elif self.selection == "bert":
            wanted = round(sequence_length * rate)
        else:
            # A word is chosen with all its pieces, and they are two where half of the tokens are continuations.
            pieces = 1 if self.unit == "token" else 2
            wanted = math.ceil(n * rate + 4 * math.sqrt(pieces * n * rate * (1 - rate)))
        if self.quota == "document":
            wanted += -(-sequence_length // 32)
        return max(1, min(n, wanted))


@dataclass(frozen=True, kw_only=True)
class MaskingConfig(MaskingRecipe):
    """A recipe together with the vocabulary it is applied to: all that `mask_tokens` needs.

    `unselectable_token_ids` are never chosen for prediction. With `random_pool="no_special"` neither they nor
    `mask_token_id` are drawn as random replacements. `padding_token_id` matters to the law `"bert"` alone, which
    counts every token that is not padding. `continuation_token_ids` continue the word of the token before them; they
    matter to the units of words alone, and a vocabulary may have none. `document_end_id` ends a document of a row; the
    quota of documents needs it.
    """

    vocabulary_size: int
    mask_token_id: int
    mask_selection_length: int = field()
    unselectable_token_ids: tuple[int, ...] = (0,)
    padding_token_id: int = 0
    continuation_token_ids: tuple[int, ...] = ()
    document_end_id: int | None = None

    def __post_init__(self) -> None:
        for name in ("unselectable_token_ids", "continuation_token_ids"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        super().__post_init__()
        require_positive(self, "vocabulary_size")
        size = self.vocabulary_size
        for name in ("mask_token_id", "padding_token_id"):
            require(self, name, 0 <= getattr(self, name) < size, f"an id in [0, {size})")
        for name in ("unselectable_token_ids", "continuation_token_ids"):
            require(self, name, all(0 <= i < size for i in getattr(self, name)), f"ids in [0, {size})")
        if self.quota == "document":
            ends = self.document_end_id is not None and 0 <= self.document_end_id < size
            require(self, "document_end_id", ends, f"an id in [0, {size}) with quota 'document'")
        drawable = self.random_token_rate == 0 or self.random_pool_size > 0
        require(self, "random_pool", drawable, "'full' where every id of the vocabulary is special")

    @property
    def special_token_ids(self) -> tuple[int, ...]:
        """The ids that `random_pool="no_special"` never draws, ascending."""
        return tuple(sorted({*self.unselectable_token_ids, self.mask_token_id}))

    @property
    def random_pool_size(self) -> int:
        """How many ids a random replacement is drawn from."""
        special = self.special_token_ids if self.random_pool == "no_special" else ()
        return self.vocabulary_size - len(special)
