"""Masking settings, as frozen dataclasses that validate themselves. Nothing here imports jax."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mlm_jax.config.settings import check_types, require, require_positive, require_rate

Selection = Literal["ceil", "bernoulli", "bert"]
RandomPool = Literal["no_special", "full"]
MaskingUnit = Literal["token", "whole_word", "span"]
Quota = Literal["row", "document"]
RateSchedule = Literal["constant", "linear", "cosine"]

# That of the longest rows; see `mlm_jax.config.model`.
_LARGEST_LENGTH = 1 << 20

STAGES = 256
"""Number of constant stages into which a rate schedule divides a run."""


@dataclass(frozen=True, kw_only=True)
class MaskingRecipe:
    """Masking settings of a run, independent of the tokenizer."""

    mask_selection_rate: float = 0.15
    """Fraction of tokens to predict."""
    final_mask_selection_rate: float | None = None
    """Fraction at the end of the run, for a rate schedule."""
    rate_schedule: RateSchedule = "constant"
    """Schedule of the rate: constant, linear or cosine.

    The rate changes from `mask_selection_rate` to `final_mask_selection_rate` in 256 stages of equally many steps: the
    first stage has the first rate, the last stage the final one. Yang, Zhang and Zhao (2023) decrease it."""
    mask_selection_length: int | None = None
    """Maximum number of predictions per row; None: derived from rate and row length."""
    mask_token_rate: float = 0.8
    """Fraction of selected tokens replaced by [MASK]."""
    random_token_rate: float = 0.1
    """Fraction of selected tokens replaced by a random token."""
    selection: Selection = "ceil"
    """Rule for the number of selected tokens: ceil, bernoulli or bert.

    See `mlm_jax.masking.selection` for the exact rules."""
    random_pool: RandomPool = "no_special"
    """Pool of random replacements: no_special, or the full vocabulary."""
    unit: MaskingUnit = "token"
    """Unit: token, whole_word or span.

    Tokens, whole words, or spans of words; see `mlm_jax.masking.spans`."""
    quota: Quota = "row"
    """Count selections per row or per document.

    With `"document"` the selection rule applies to every document of a packed row, so that each document has
    predictions; if the quotas exceed `mask_selection_length`, those of the row's last documents are cut. A document
    whose words are all longer than its quota has no predictions. Data prepared without a [SEP] between documents count
    as one document per row."""

    def __post_init__(self) -> None:
        check_types(self)
        require_rate(self, "mask_selection_rate", "mask_token_rate", "random_token_rate")
        # The tolerance allows for rounding, as in 0.9 + 0.1.
        fits = self.mask_token_rate + self.random_token_rate <= 1.0 + 1e-9
        require(
            self, "random_token_rate", fits, f"at most 1 - mask_token_rate = {1 - self.mask_token_rate:.6g}"
        )
        if self.mask_selection_length is not None:
            require_positive(self, "mask_selection_length")
            fits = self.mask_selection_length <= _LARGEST_LENGTH
            require(self, "mask_selection_length", fits, f"at most {_LARGEST_LENGTH:,}")
        self._check_schedule()
        # Spans and quotas need a budget; the bernoulli rule, which chooses positions independently, has none.
        independent = self.selection == "bernoulli"
        require(self, "unit", not (independent and self.unit == "span"), "no span with selection 'bernoulli'")
        require(
            self, "quota", not (independent and self.quota == "document"), "'row' with selection 'bernoulli'"
        )

    def _check_schedule(self) -> None:
        name, final = "final_mask_selection_rate", self.final_mask_selection_rate
        if self.rate_schedule == "constant":
            require(self, name, final is None, "None with rate_schedule 'constant'")
        else:
            require(self, name, final is not None, f"a rate with rate_schedule {self.rate_schedule!r}")
            require_rate(self, name)

    def require_something_to_learn(self) -> None:
        """Raises InputError if a model could not learn from these masks, or not from those of some stage.

        No token is masked at a rate of 0. If no masked token is replaced, the model sees the tokens that it predicts.
        """
        final = self.final_mask_selection_rate
        require(
            self, "mask_selection_rate", self.mask_selection_rate > 0, "above 0 for training and evaluation"
        )
        require(self, "final_mask_selection_rate", final is None or final > 0, "above 0 for training")
        if self.selection == "bernoulli":
            for name in ("mask_selection_rate", "final_mask_selection_rate"):
                rate = getattr(self, name)
                require(
                    self, name, rate is None or rate >= 2**-30, "at least 2**-30 with selection 'bernoulli'"
                )
        require(
            self,
            "mask_token_rate",
            self.mask_token_rate + self.random_token_rate >= 2**-20,
            "above 0 if random_token_rate is 0: the model would see every token that it predicts",
        )

    def stage_rates(self) -> tuple[float, ...]:
        """Returns the rate of each stage of a run: one rate if it is constant, otherwise `STAGES` rates."""
        first, last = self.mask_selection_rate, self.final_mask_selection_rate
        if last is None:
            return (first,)
        done = [stage / (STAGES - 1) for stage in range(1, STAGES - 1)]
        if self.rate_schedule == "cosine":
            done = [(1 - math.cos(math.pi * share)) / 2 for share in done]
        # Rounded, because math libraries differ in the last bit of a cosine, and masks must not differ.
        return (first, *(round(first + (last - first) * share, 9) for share in done), last)

    def rate_at(self, step: int, num_steps: int) -> float:
        """Returns the rate at `step` (from 0) of a run with `num_steps` steps."""
        rates = self.stage_rates()
        return rates[min(step * len(rates) // num_steps, len(rates) - 1)]

    def selection_length(self, sequence_length: int) -> int:
        """Returns `mask_selection_length` or, if it is None, a length that hardly any row exceeds.

        A row has at most `sequence_length` - 2 selectable tokens; the highest rate of the schedule counts. `"ceil"` and
        `"bert"` never select more than the result; `"bernoulli"` exceeds it in about one row in 30,000 (four standard
        deviations, with a variance that only vocabularies of very short pieces exceed). Quota `"document"` adds room
        for rounding up: half a token per document, at one document every 16 tokens.
        """
        if self.mask_selection_length is not None:
            return self.mask_selection_length
        n, rate = sequence_length - 2, max(self.stage_rates())
        if self.selection == "ceil":
            wanted = math.ceil(np.float32(n) * np.float32(rate))
        elif self.selection == "bert":
            wanted = round(sequence_length * rate)
        else:
            # A word is selected with all its pieces: two on average if half the tokens are continuations.
            pieces = 1 if self.unit == "token" else 2
            wanted = math.ceil(n * rate + 4 * math.sqrt(pieces * n * rate * (1 - rate)))
        if self.quota == "document":
            wanted += -(-sequence_length // 32)
        return max(1, min(n, wanted))


@dataclass(frozen=True, kw_only=True)
class MaskingConfig(MaskingRecipe):
    """A recipe and the vocabulary it applies to: everything that `mask_tokens` needs."""

    vocabulary_size: int
    """Number of vocabulary entries."""
    mask_token_id: int
    """Id of [MASK]."""
    unselectable_token_ids: tuple[int, ...] = (0,)
    """Ids that are never selected for prediction.

    With `random_pool="no_special"` neither they nor `mask_token_id` are drawn as random replacements."""
    padding_token_id: int = 0
    """Id of padding, which completes rows of different lengths, and which the rule `"bert"` does not count."""
    continuation_token_ids: tuple[int, ...] = ()
    """Ids that continue the word of the preceding token; needed only for word and span units."""
    words_from_data: bool = False
    """True if rows come with `continues_word`, because an id alone does not tell where words begin."""
    document_end_id: int | None = None
    """Id that ends a document in a row; needed only for quotas per document."""

    def __post_init__(self) -> None:
        for name in ("unselectable_token_ids", "continuation_token_ids"):
            if isinstance(getattr(self, name), Iterable):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        super().__post_init__()
        require_positive(self, "vocabulary_size")
        size = self.vocabulary_size
        require(self, "vocabulary_size", size < 2**31, "below 2**31: ids are int32")
        for name in ("mask_token_id", "padding_token_id"):
            require(self, name, 0 <= getattr(self, name) < size, f"an id in [0, {size})")
        for name in ("unselectable_token_ids", "continuation_token_ids"):
            require(self, name, all(0 <= i < size for i in getattr(self, name)), f"ids in [0, {size})")
        if self.quota == "document":
            ends = self.document_end_id is not None and 0 <= self.document_end_id < size
            require(self, "document_end_id", ends, f"an id in [0, {size}) with quota 'document'")
        drawable = self.random_token_rate == 0 or self.random_pool_size > 0
        require(self, "random_pool", drawable, "'full' if every id of the vocabulary is special")

    def selection_length(self, sequence_length: int) -> int:
        """Returns the same as for a recipe, but if derived, enough for rows in which every token is selectable."""
        return super().selection_length(sequence_length + 2)

    @property
    def special_token_ids(self) -> tuple[int, ...]:
        """Ids that `random_pool="no_special"` never draws, in ascending order."""
        return tuple(sorted({*self.unselectable_token_ids, self.mask_token_id}))

    @property
    def random_pool_size(self) -> int:
        """Number of ids from which a random replacement is drawn."""
        special = self.special_token_ids if self.random_pool == "no_special" else ()
        return self.vocabulary_size - len(special)
