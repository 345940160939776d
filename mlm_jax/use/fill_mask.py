"""Fills masks in texts: best candidates, restricted targets, and joint decoding of several masks."""

import warnings
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, TypedDict

import numpy as np

from mlm_jax.errors import InputError
from mlm_jax.text.tokenizer import Tokenizer
from mlm_jax.use.labels import check_switch, kind_of, listed
from mlm_jax.vocabulary.wordpiece import check_text

MASK = "[MASK]"
"""Marks a mask in texts for any tokenizer, which may have another name for it."""

_BEAM_WIDTH = 8
# Number of texts for which probabilities over the whole vocabulary are held in memory at once.
_TEXTS_AT_ONCE = 512

# Maps rows with [CLS] and [SEP], and positions in each, to float32 [positions, vocabulary] per row.
LogProbabilities = Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], list[np.ndarray]]
# Same arguments; returns float64 [positions] per row: the log-probability of each token if only this token is masked.
TokenLogProbabilities = Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], list[np.ndarray]]


class Candidate(TypedDict):
    """A candidate for a mask, or for all masks of a text jointly."""

    score: float
    """Probability in [0, 1] over the whole vocabulary; the product if there are several pieces or masks."""
    token: int | list[int]
    """Token id, or list of ids from left to right if there are several."""
    token_str: str | list[str]
    """Vocabulary entry, including `##`, or the target as given."""
    sequence: str
    """Text with the mask filled."""


@dataclass(frozen=True)
class Prompt:
    """A tokenized text with masks."""

    text: str
    token_ids: np.ndarray
    """int32 [length], with [CLS] and [SEP]."""
    positions: np.ndarray
    """int [masks]."""


@dataclass(frozen=True)
class _Hypothesis:
    """A prompt with some of its masks filled; `filled` maps the index of a mask to the token id."""

    log_probability: float = 0.0
    filled: dict[int, int] = field(default_factory=dict)

    def row(self, prompt: Prompt) -> np.ndarray:
        row = prompt.token_ids.copy()
        for mask, token in self.filled.items():
            row[prompt.positions[mask]] = token
        return row


def prompts_of(texts: Sequence[str], tokenizer: Tokenizer, longest: int) -> list[Prompt]:
    """Tokenizes texts with masks, written as [MASK] or as the tokenizer does.

    Raises:
        InputError: there is no text, or a text is not a string, is empty, has no [MASK], or has more than `longest`
            tokens. The message has its number.

    Warns if more than 1 % of the tokens are unknown.
    """
    prompts, mask = [], tokenizer.roles.mask_token
    texts = listed(texts, "texts")
    for index, text in enumerate(texts):
        where = f"text {index}: " if len(texts) > 1 else ""
        if not isinstance(text, str):
            raise InputError(f"{where}found {kind_of(text)}: must be a string")
        check_text(text, f"text {index}")
        if not text.strip():
            raise InputError(f"{where}the text is empty: must have at least one {mask}")
        text = text.replace(MASK, mask)  # noqa: PLW2901
        body = tokenizer.encode(text, parse_special_tokens=True)
        ends = (tokenizer.cls_token_id, tokenizer.sep_token_id)
        token_ids = np.concatenate([ends[:1], body, ends[1:]]).astype(np.int32)
        if len(token_ids) > longest:
            raise InputError(
                f"{where}the text has {len(token_ids)} tokens: the model takes at most {longest}"
            )
        positions = np.flatnonzero(token_ids == tokenizer.mask_token_id)
        if not positions.size:
            raise InputError(f"{where}no {mask} in {text!r}: must have at least one")
        # The tokenizer may also find it in other spellings, or not within a word.
        if len(positions) != text.count(mask):
            raise InputError(
                f"{where}the tokenizer finds {len(positions)} masks in {text!r}: must be {text.count(mask)}, the "
                f"number of {mask}"
            )
        prompts.append(Prompt(text, token_ids, positions))
    without_masks = [prompt.text.replace(mask, " ") for prompt in prompts]
    if warning := tokenizer.unknown_warning(without_masks, [prompt.token_ids for prompt in prompts]):
        warnings.warn(f"texts: {warning}", stacklevel=2)
    return prompts


def candidates_of(
    prompts: Sequence[Prompt],
    predict: LogProbabilities,
    score: TokenLogProbabilities,
    tokenizer: Tokenizer,
    *,
    longest: int,
    top_k: int,
    targets: Sequence[str] | None,
    joint: bool,
) -> list[Any]:
    """Returns the candidates of each prompt; see `MaskedLM.fill_mask`.

    Raises:
        InputError: `top_k` is out of range; a target is unknown, has several pieces although a text has several masks,
            or makes a row longer than `longest` tokens.
    """
    ordinary = np.setdiff1d(np.arange(tokenizer.vocabulary_size), np.array(tokenizer.special_token_ids))
    if not isinstance(top_k, int | np.integer) or not 1 <= top_k <= len(ordinary):
        raise InputError(f"top_k = {top_k!r}: must be in [1, {len(ordinary)}], a whole number")
    check_switch("joint", joint)
    several_masks = [len(prompt.positions) > 1 for prompt in prompts]
    if targets is not None:
        pieces = target_pieces(targets, tokenizer)
        if any(len(ids) > 1 for ids in pieces.values()):
            if any(several_masks):
                raise InputError("targets of several pieces: must have one piece if a text has several masks")
            return [rank_targets(prompt, pieces, score, tokenizer, longest, top_k) for prompt in prompts]
        ordinary = np.unique([int(ids[0]) for ids in pieces.values()])
    arguments = (predict, tokenizer, ordinary, min(top_k, len(ordinary)))
    results: dict[int, Any] = {}
    jointly = [number for number, several in enumerate(several_masks) if several and joint]
    independently = [number for number in range(len(prompts)) if number not in jointly]
    for part in _parts(jointly):
        found = joint_candidates([prompts[number] for number in part], *arguments)
        results |= dict(zip(part, found, strict=True))
    for part in _parts(independently):
        each = independent_candidates([prompts[number] for number in part], *arguments)
        for number, masks in zip(part, each, strict=True):
            results[number] = masks if several_masks[number] else masks[0]
    return [results[number] for number in range(len(prompts))]


def _parts(numbers: Sequence[int]) -> list[Sequence[int]]:
    return [numbers[first : first + _TEXTS_AT_ONCE] for first in range(0, len(numbers), _TEXTS_AT_ONCE)]


def independent_candidates(
    prompts: Sequence[Prompt],
    predict: LogProbabilities,
    tokenizer: Tokenizer,
    answers: np.ndarray,
    top_k: int,
) -> list[list[list[Candidate]]]:
    """Returns the `top_k` best of the ids `answers` for each mask of each prompt, with the other masks unfilled."""
    found = predict([prompt.token_ids for prompt in prompts], [prompt.positions for prompt in prompts])
    results = []
    for prompt, log_probabilities in zip(prompts, found, strict=True):
        masks = []
        for mask, chances in enumerate(log_probabilities):
            best = _best(chances[answers], top_k)
            masks.append(
                [
                    _candidate(prompt, float(chances[token]), {mask: int(token)}, tokenizer)
                    for token in answers[best]
                ]
            )
        results.append(masks)
    return results


def joint_candidates(
    prompts: Sequence[Prompt],
    predict: LogProbabilities,
    tokenizer: Tokenizer,
    answers: np.ndarray,
    top_k: int,
) -> list[list[Candidate]]:
    """Returns the `top_k` best ways to fill all masks of each prompt, found by beam search.

    Each hypothesis first fills the mask with the most confident prediction, then predicts the others given that token.
    Its score is the product of the probabilities in that order. If two orders yield the same tokens, the more probable
    order counts.
    """
    width = max(top_k, _BEAM_WIDTH)
    beams = [[_Hypothesis()] for _ in prompts]
    for _ in range(max(len(prompt.positions) for prompt in prompts)):
        open_ones = [
            (number, hypothesis, np.setdiff1d(np.arange(len(prompt.positions)), list(hypothesis.filled)))
            for number, prompt in enumerate(prompts)
            for hypothesis in beams[number]
            if len(hypothesis.filled) < len(prompt.positions)
        ]
        found = predict(
            [hypothesis.row(prompts[number]) for number, hypothesis, _ in open_ones],
            [prompts[number].positions[masks] for number, _, masks in open_ones],
        )
        grown: dict[int, dict[tuple[tuple[int, int], ...], _Hypothesis]] = {}
        for (number, hypothesis, masks), log_probabilities in zip(open_ones, found, strict=True):
            chances = log_probabilities[:, answers]
            most_confident = int(np.argmax(chances.max(axis=1)))
            beam = grown.setdefault(number, {})
            for place in _best(chances[most_confident], width):
                filled = hypothesis.filled | {int(masks[most_confident]): int(answers[place])}
                total = hypothesis.log_probability + float(chances[most_confident, place])
                key = tuple(sorted(filled.items()))
                if key not in beam or beam[key].log_probability < total:
                    beam[key] = _Hypothesis(total, filled)
        for number, beam in grown.items():
            beams[number] = sorted(beam.values(), key=lambda h: -h.log_probability)[:width]
    return [
        [_candidate(prompt, h.log_probability, h.filled, tokenizer) for h in beam[:top_k]]
        for prompt, beam in zip(prompts, beams, strict=True)
    ]


def target_pieces(targets: Sequence[str], tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    """Returns the ids of each target's pieces, by target.

    Raises:
        InputError: there is no target, or a target has no piece in the vocabulary.
    """
    targets = sorted(targets) if isinstance(targets, Set) else listed(targets, "targets")
    pieces = dict(zip(targets, tokenizer.encode_batch(targets), strict=True))
    # An entry that continues a word can be given by its name, including `##`.
    entries = {target: tokenizer.token_to_id(target) for target in pieces}
    pieces |= {target: np.array([entry]) for target, entry in entries.items() if entry is not None}
    for target, ids in pieces.items():
        if not len(ids) or set(ids.tolist()) & set(tokenizer.special_token_ids):
            raise InputError(f"target {target!r}: the tokenizer has no pieces for it")
    return pieces


def rows_with_targets(
    prompt: Prompt, pieces: dict[str, np.ndarray], longest: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Returns the prompt's row with its only mask replaced by each target, and the positions of the target's pieces.

    Raises:
        InputError: a row has more than `longest` tokens.
    """
    (position,) = prompt.positions
    before, after = prompt.token_ids[:position], prompt.token_ids[position + 1 :]
    rows = [np.concatenate([before, ids, after]).astype(np.int32) for ids in pieces.values()]
    for target, row in zip(pieces, rows, strict=True):
        if len(row) > longest:
            raise InputError(
                f"target {target!r}: the text with it has {len(row)} tokens: the model takes at most {longest}"
            )
    return rows, [np.arange(position, position + len(ids)) for ids in pieces.values()]


def rank_targets(
    prompt: Prompt,
    pieces: dict[str, np.ndarray],
    score: TokenLogProbabilities,
    tokenizer: Tokenizer,
    longest: int,
    top_k: int,
) -> list[Candidate]:
    """Returns the `top_k` best targets for the prompt's only mask, by the pseudo-log-likelihood of their pieces.

    Each piece is masked in turn and predicted from the text with the other pieces (Salazar et al. 2020). For a target
    of one piece, this is its log-probability.
    """
    totals = [float(np.sum(chances)) for chances in score(*rows_with_targets(prompt, pieces, longest))]
    ranked = sorted(zip(totals, pieces.items(), strict=True), key=lambda entry: -entry[0])
    candidates = []
    for total, (target, ids) in ranked[:top_k]:
        token = int(ids[0]) if len(ids) == 1 else [int(piece) for piece in ids]
        entry = tokenizer.id_to_token(int(ids[0])) if len(ids) == 1 else target
        sequence = _filled_text(prompt.text, {0: entry or target}, tokenizer)
        candidates.append(
            Candidate(score=float(np.exp(total)), token=token, token_str=entry or target, sequence=sequence)
        )
    return candidates


def _best(values: np.ndarray, count: int) -> np.ndarray:
    """Returns the indices of the `count` largest values, largest first; of equal values, the first come first."""
    if count < len(values):
        # All values from the `count`-th largest on; surplus equal values are cut off below.
        limit = np.partition(values, -count)[-count]
        places = np.flatnonzero(values >= limit)
    else:
        places = np.arange(len(values))
    return places[np.argsort(-values[places], kind="stable")][:count]


def _candidate(
    prompt: Prompt, log_probability: float, filled: dict[int, int], tokenizer: Tokenizer
) -> Candidate:
    tokens = [filled[mask] for mask in sorted(filled)]
    entries = {mask: tokenizer.id_to_token(token) or "" for mask, token in sorted(filled.items())}
    one = len(tokens) == 1
    return Candidate(
        score=float(np.exp(log_probability)),
        token=tokens[0] if one else tokens,
        token_str=next(iter(entries.values())) if one else list(entries.values()),
        sequence=_filled_text(prompt.text, entries, tokenizer),
    )


def _filled_text(text: str, entries: dict[int, str], tokenizer: Tokenizer) -> str:
    """Returns the text with masks filled. A piece that continues a word is joined to the preceding text."""
    name = tokenizer.roles.mask_token
    parts = text.split(name)
    joined = parts[0]
    for mask, part in enumerate(parts[1:]):
        piece, joins = tokenizer.text_of(entries[mask]) if mask in entries else (name, False)
        joined = joined.rstrip() + piece if joins else joined + piece
        joined += part
    return joined
