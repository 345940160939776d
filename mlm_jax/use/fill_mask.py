"""Filling the [MASK] of texts: candidates, restricted targets, and several masks decoded together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

import numpy as np

from mlm_jax.errors import InputError
from mlm_jax.text.tokenizer import Tokenizer

MASK = "[MASK]"
_BEAM_WIDTH = 8

# Rows with [CLS] and [SEP], and the positions asked for in each, to float32 [positions, vocabulary] a row.
LogProbabilities = Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], list[np.ndarray]]
# The same to the log-probability of each token that stands there, had it been masked.
TokenLogProbabilities = Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], list[np.ndarray]]


class Candidate(TypedDict):
    """One answer: to a mask, or to all masks of a text together."""

    score: float
    """Probability in [0, 1] over the whole vocabulary; of several pieces or masks, the product."""
    token: int | list[int]
    """Its id; the ids left to right where there are several."""
    token_str: str | list[str]
    """The vocabulary entry as it stands there, `##` included, or the target as it was given."""
    sequence: str
    """The text with the mask filled."""


@dataclass(frozen=True)
class Prompt:
    """A text with masks, tokenised."""

    text: str
    token_ids: np.ndarray
    """int32 [length], with [CLS] and [SEP]."""
    positions: np.ndarray
    """int [masks]."""


@dataclass(frozen=True)
class _Hypothesis:
    """Some masks of a prompt filled: mask's number to id."""

    log_probability: float = 0.0
    filled: dict[int, int] = field(default_factory=dict)

    def row(self, prompt: Prompt) -> np.ndarray:
        row = prompt.token_ids.copy()
        for mask, token in self.filled.items():
            row[prompt.positions[mask]] = token
        return row


def prompts_of(texts: Sequence[str], tokenizer: Tokenizer, longest: int) -> list[Prompt]:
    """Tokenise texts that hold masks.

    Raises:
        InputError: a text is empty, has no [MASK] or more than `longest` tokens; says which.
    """
    prompts = []
    for index, text in enumerate(texts):
        where = f"text {index}: " if len(texts) > 1 else ""
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{where}the text is empty: must hold at least one {MASK}")
        body = tokenizer.encode(text, parse_special_tokens=True)
        ends = (tokenizer.cls_token_id, tokenizer.sep_token_id)
        token_ids = np.concatenate([ends[:1], body, ends[1:]]).astype(np.int32)
        if len(token_ids) > longest:
            raise InputError(
                f"{where}the text has {len(token_ids)} tokens: the model takes at most {longest}"
            )
        positions = np.flatnonzero(token_ids == tokenizer.mask_token_id)
        if not positions.size:
            raise InputError(f"{where}no {MASK} in {text!r}: must hold at least one")
        prompts.append(Prompt(text, token_ids, positions))
    return prompts


def independent_candidates(
    prompts: Sequence[Prompt],
    predict: LogProbabilities,
    tokenizer: Tokenizer,
    answers: np.ndarray,
    top_k: int,
) -> list[list[list[Candidate]]]:
    """For each prompt and each of its masks the best `top_k` of the ids `answers`, whatever the other masks hold."""
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
    """The best `top_k` ways that a beam search finds to fill all masks of each prompt.

    Each hypothesis fills first the mask it is surest of, and then sees what stands there. Its score is the product
    of the probabilities in that order; of two orders that end alike, the more probable one.
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
            surest = int(np.argmax(chances.max(axis=1)))
            beam = grown.setdefault(number, {})
            for place in _best(chances[surest], width):
                filled = hypothesis.filled | {int(masks[surest]): int(answers[place])}
                total = hypothesis.log_probability + float(chances[surest, place])
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
    """Each target, once, and the ids of its pieces.

    Raises:
        InputError: there is none, or one of them has no piece in the vocabulary.
    """
    if isinstance(targets, str) or not len(targets):
        raise InputError(f"targets = {targets!r}: must be a list of at least one word")
    pieces = dict(zip(targets, tokenizer.encode_batch(list(targets)), strict=True))
    # A vocabulary entry that continues a word can be asked for by its name.
    entries = {target: tokenizer.token_to_id(target) for target in pieces}
    pieces |= {target: np.array([entry]) for target, entry in entries.items() if entry is not None}
    for target, ids in pieces.items():
        if not len(ids) or set(ids.tolist()) & set(tokenizer.special_token_ids):
            raise InputError(f"target {target!r}: the tokenizer has no pieces for it")
    return pieces


def rank_targets(
    prompt: Prompt,
    pieces: dict[str, np.ndarray],
    score: TokenLogProbabilities,
    tokenizer: Tokenizer,
    longest: int,
    top_k: int,
) -> list[Candidate]:
    """The targets, each in the place of the prompt's one mask, by their pieces' pseudo-log-likelihood.

    Each piece is masked in turn and predicted from the text with the others (Salazar et al. 2020); of a target of
    one piece that is its probability.
    """
    (position,) = prompt.positions
    before, after = prompt.token_ids[:position], prompt.token_ids[position + 1 :]
    rows = [np.concatenate([before, ids, after]).astype(np.int32) for ids in pieces.values()]
    for target, row in zip(pieces, rows, strict=True):
        if len(row) > longest:
            raise InputError(
                f"target {target!r}: with it the text has {len(row)} tokens: the model takes at most {longest}"
            )
    places = [np.arange(position, position + len(ids)) for ids in pieces.values()]
    totals = [float(np.sum(chances)) for chances in score(rows, places)]
    ranked = sorted(zip(totals, pieces.items(), strict=True), key=lambda entry: -entry[0])
    candidates = []
    for total, (target, ids) in ranked[:top_k]:
        token = int(ids[0]) if len(ids) == 1 else [int(piece) for piece in ids]
        entry = tokenizer.id_to_token(int(ids[0])) if len(ids) == 1 else target
        sequence = _filled_text(prompt.text, {0: entry or target})
        candidates.append(
            Candidate(score=float(np.exp(total)), token=token, token_str=entry or target, sequence=sequence)
        )
    return candidates


def _best(values: np.ndarray, count: int) -> np.ndarray:
    """Places of the `count` largest values, largest first; of equal ones the first."""
    if count < len(values):
        # Everything above the last one that fits, and of its equals the first.
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
        sequence=_filled_text(prompt.text, entries),
    )


def _filled_text(text: str, entries: dict[int, str]) -> str:
    """The text with those masks filled; a piece that continues a word is joined to what stands before it."""
    parts = text.split(MASK)
    joined = parts[0]
    for mask, part in enumerate(parts[1:]):
        entry = entries.get(mask, MASK)
        joined = joined.rstrip() + entry.removeprefix("##") if entry.startswith("##") else joined + entry
        joined += part
    return joined
