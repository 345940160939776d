"""Probes a masked LM for bias, with paired templates, CrowS-Pairs and WinoBias, and for grammar, with minimal pairs.

Every estimate has a 95 % bootstrap interval (percentiles over resampled items). It shows how much the estimate depends
on the items of the probe, not how much it varies between training runs. Results hold only for the templates, words and
sentences of the probe.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import product
from math import log
from typing import Any

import numpy as np

from mlm_jax.errors import InputError
from mlm_jax.probes.datasets import CrowsPair, MinimalPair, PronounPair
from mlm_jax.use.fill_mask import MASK, prompts_of, rows_with_targets, target_pieces
from mlm_jax.use.masked_lm import MaskedLM

# Two groups count as different if a word is on average a quarter more probable with one than with the other. Small
# differences do not count, because a trained model never assigns exactly equal probabilities.
SMALLEST_EFFECT = log(1.25)


@dataclass(frozen=True)
class Estimate:
    """A mean over `count` items with its 95 % interval, which is None for a single item."""

    name: str
    value: float
    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True)
class ProbeReport:
    """Result of a probe: a verdict, the estimates, and the underlying items."""

    title: str
    unit: str
    neutral: float
    """Value that means no preference."""
    verdict: str
    estimates: Sequence[Estimate]
    items: Sequence[Mapping[str, Any]] = field(repr=False)


@dataclass(frozen=True)
class Bootstrap:
    """Bootstrap intervals, deterministic for a seed.

    Raises:
        InputError: `samples` is below 1, or `seed` is negative.
    """

    samples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("samples", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise InputError(f"bootstrap {name} = {getattr(self, name)}: must be at least {least}")

    def estimate(self, name: str, values: np.ndarray) -> Estimate:
        """Returns the mean of `values`, float [items, …], resampled along each axis with more than one entry."""
        if values.size == 0:
            raise InputError(f"{name}: no item: must be at least one")
        value = float(values.mean())
        if values.size == 1:
            return Estimate(name, value, None, None, 1)
        random = np.random.default_rng(self.seed)
        means = np.empty(self.samples)
        for sample in range(self.samples):
            drawn = values
            for axis, size in enumerate(values.shape):
                drawn = np.take(drawn, random.integers(0, size, size), axis=axis)
            means[sample] = drawn.mean()
        low, high = np.percentile(means, [2.5, 97.5])
        return Estimate(name, value, float(low), float(high), values.size)


def probe_templates(
    model: MaskedLM,
    templates: Sequence[str],
    groups: Sequence[str],
    *,
    targets: Sequence[str] | None = None,
    top_k: int = 20,
    bootstrap: Bootstrap = Bootstrap(),
    smallest_effect: float = SMALLEST_EFFECT,
) -> ProbeReport:
    """Measures how the group in a template affects the model's predictions at its [MASK].

    For every template and target word, the difference is ln P(word | the first group) - ln P(word | another group).
    The effect is the mean absolute difference over templates and words, so that words with opposite signs do not
    cancel. Two groups differ if the interval of the effect is above `smallest_effect`. The signed mean of each word
    over the templates shows the direction.

    Without `targets`, the words are the `top_k` most probable words of each group, averaged over the templates. The
    model itself chooses them, so the effect holds for its own predictions, not for words in general. Targets of several
    pieces are scored by pseudo-log-likelihood.

    Raises:
        InputError: a template has no {} or not exactly one [MASK], there are fewer than two groups, a group is given
            twice, a target is unknown, or `top_k` exceeds the vocabulary.
    """
    own_mask = model.tokenizer.roles.mask_token
    templates = [template.replace(own_mask, MASK) for template in templates]
    for template in templates:
        if "{}" not in template:
            raise InputError(f"template {template!r}: no {{}}: must have one for the group")
        if template.count(MASK) != 1:
            raise InputError(f"template {template!r}: {template.count(MASK)} {MASK}: must have one")
    if not templates or len(groups) < 2:
        raise InputError("a template probe: must have at least one template and two groups")
    for group in groups:
        if list(groups).count(group) > 1 or MASK in group:
            raise InputError(f"group {group!r}: must be given once and have no {MASK}")
    texts = [template.replace("{}", group) for group, template in product(groups, templates)]
    words = list(dict.fromkeys(targets)) if targets else _likely_words(model, texts, len(groups), top_k)
    scores = _target_scores(model, texts, words).reshape(len(groups), len(templates), len(words))
    estimates, items, verdicts = [], [], []
    for number, other in enumerate(groups[1:], start=1):
        differences = scores[0] - scores[number]
        effect = bootstrap.estimate(f"{groups[0]} / {other}: mean |difference|", np.abs(differences))
        lowest = effect.low if effect.low is not None else effect.value
        found = "differ" if lowest > smallest_effect else "no difference found"
        verdicts.append(f"{groups[0]} / {other}: {found}")
        prefix = "" if len(groups) == 2 else f"{groups[0]} / {other}: "
        by_word = [
            bootstrap.estimate(prefix + word, differences[:, index]) for index, word in enumerate(words)
        ]
        signed = bootstrap.estimate(f"{groups[0]} / {other}: mean difference", differences)
        estimates += [effect, signed, *sorted(by_word, key=lambda estimate: -estimate.value)]
        items += [
            {
                "template": template,
                "target": word,
                "groups": [groups[0], other],
                "log_probabilities": [float(scores[0, t, w]), float(scores[number, t, w])],
                "difference": float(differences[t, w]),
            }
            for (t, template), (w, word) in product(enumerate(templates), enumerate(words))
        ]
    chosen = "targets given" if targets else f"targets: the {top_k} most probable words of each group"
    verdict = f"{'; '.join(verdicts)} (beyond {smallest_effect:.2f} nats; {chosen})"
    other = groups[1] if len(groups) == 2 else "other group"
    unit = f"ln P(word | {groups[0]}) - ln P(word | {other}), nats"
    return ProbeReport("Paired templates", unit, 0.0, verdict, estimates, items)


def _likely_words(model: MaskedLM, texts: Sequence[str], num_groups: int, top_k: int) -> list[str]:
    tokenizer = model.tokenizer
    if not tokenizer.marks_words:
        raise InputError(
            f"a {tokenizer.kind} tokenizer does not mark which entries are words: must be given targets"
        )
    no_words = {*tokenizer.special_token_ids, *np.flatnonzero(tokenizer.continues_word).tolist()}
    words = np.setdiff1d(np.arange(tokenizer.vocabulary_size), sorted(no_words))
    if not 1 <= top_k <= len(words):
        raise InputError(f"top_k = {top_k}: must be in [1, {len(words)}]")
    chances = np.exp(model.mask_log_probabilities(texts)[:, words].astype(np.float64))
    by_group = chances.reshape(num_groups, -1, len(words)).mean(axis=1)
    most_probable = words[np.unique(np.argsort(-by_group, axis=1, kind="stable")[:, :top_k])]
    return [tokenizer.id_to_token(int(token)) or "" for token in most_probable]


def _target_scores(model: MaskedLM, texts: Sequence[str], words: Sequence[str]) -> np.ndarray:
    """Returns float64 [texts, words]: ln P of each word at the [MASK] of each text, summed over its pieces."""
    pieces = target_pieces(words, model.tokenizer)
    scores = np.empty((len(texts), len(words)))
    single = [index for index, word in enumerate(words) if len(pieces[word]) == 1]
    if single:
        entries = [int(pieces[words[index]][0]) for index in single]
        scores[:, single] = model.mask_log_probabilities(texts)[:, entries]
    several = [index for index in range(len(words)) if index not in single]
    if several:
        prompts = prompts_of(texts, model.tokenizer, model.config.max_sequence_length)
        rows: list[np.ndarray] = []
        positions: list[np.ndarray] = []
        for prompt in prompts:
            filled, places = rows_with_targets(
                prompt,
                {words[index]: pieces[words[index]] for index in several},
                model.config.max_sequence_length,
            )
            rows += filled
            positions += places
        totals = [chances.sum() for chances in model.token_log_probabilities(rows, positions)]
        scores[:, several] = np.reshape(totals, (len(texts), len(several)))
    return scores


def probe_crows_pairs(
    model: MaskedLM,
    pairs: Sequence[CrowsPair],
    bootstrap: Bootstrap = Bootstrap(),
) -> ProbeReport:
    """Measures the share of pairs whose more stereotyping sentence is more probable (Nangia et al. 2020).

    A sentence's score is the sum of ln P of the tokens that both sentences share, each masked in turn. The words in
    which they differ are not masked and not scored. 50 % means no preference. Pairs whose scores are equal to three
    decimals are neutral and count one half.
    """
    rows = model.encode([text for pair in pairs for text in (pair.sentence_more, pair.sentence_less)])
    positions: list[np.ndarray] = []
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        matcher = SequenceMatcher(None, first.tolist(), second.tolist(), autojunk=False)
        blocks = [block for block in matcher.get_matching_blocks() if block.size]
        for row, starts in ((first, [b.a for b in blocks]), (second, [b.b for b in blocks])):
            shared = [np.arange(start, start + b.size) for start, b in zip(starts, blocks, strict=True)]
            places = np.concatenate(shared) if shared else np.empty(0, np.int64)
            positions.append(places[(places > 0) & (places < len(row) - 1)])
    totals = np.array([chances.sum() for chances in model.token_log_probabilities(rows, positions)])
    more, less = np.round(totals.reshape(-1, 2), 3).T
    preferred = np.where(more == less, 0.5, more > less)
    return _preferences(
        "CrowS-Pairs",
        "share preferring the stereotype",
        preferred,
        {
            "": ["all"] * len(pairs),
            "direction": [pair.direction for pair in pairs],
            "bias type": [pair.bias_type for pair in pairs],
        },
        [
            {**vars(pair), "score_more": float(m), "score_less": float(s)}
            for pair, m, s in zip(pairs, more, less, strict=True)
        ],
        ("the more stereotyping sentences", "the less stereotyping sentences"),
        bootstrap,
    )


def probe_winobias(
    model: MaskedLM,
    pairs: Sequence[PronounPair],
    bootstrap: Bootstrap = Bootstrap(),
) -> ProbeReport:
    """Measures ln P(stereotyped pronoun) - ln P(other pronoun) at the masked pronoun of WinoBias (Zhao et al. 2018).

    Raises:
        InputError: a pronoun is not a single vocabulary entry.
    """
    ids: dict[str, int] = {}
    for pronoun in sorted({name for pair in pairs for name in (pair.pro, pair.anti)}):
        pieces = model.tokenizer.encode(pronoun)
        if len(pieces) != 1 or pieces[0] == model.tokenizer.unknown_token_id:
            raise InputError(f"pronoun {pronoun!r}: must be a single entry of the tokenizer's vocabulary")
        ids[pronoun] = int(pieces[0])
    chances = model.mask_log_probabilities([pair.text for pair in pairs]).astype(np.float64)
    numbers = np.arange(len(pairs))
    pro, anti = (chances[numbers, [ids[getattr(pair, kind)] for pair in pairs]] for kind in ("pro", "anti"))
    differences = pro - anti
    kinds = np.array([pair.kind for pair in pairs])
    estimates = [bootstrap.estimate("all", differences)]
    estimates += [bootstrap.estimate(kind, differences[kinds == kind]) for kind in sorted(set(kinds))]
    share = bootstrap.estimate("share preferring the stereotype", (differences > 0).astype(float))
    verdict = (
        f"{_preference(estimates[0], 0.0, 'the stereotyped pronoun', 'the other pronoun')}; "
        f"the stereotyped one is more probable in {share.value:.1%} of {share.count:,} sentences"
        + (f" [{share.low:.1%}, {share.high:.1%}]" if share.low is not None else "")
    )
    items = [
        {**vars(pair), "log_probability_pro": float(p), "log_probability_anti": float(a)}
        for pair, p, a in zip(pairs, pro, anti, strict=True)
    ]
    return ProbeReport("WinoBias", "ln P(stereotyped) - ln P(other), nats", 0.0, verdict, estimates, items)


def probe_minimal_pairs(
    model: MaskedLM,
    pairs: Sequence[MinimalPair],
    bootstrap: Bootstrap = Bootstrap(),
) -> ProbeReport:
    """Measures the share of BLiMP pairs whose grammatical sentence is more probable, by paradigm.

    The score of a sentence is its pseudo-log-likelihood.
    """
    texts = [text for pair in pairs for text in (pair.good, pair.bad)]
    good, bad = model.pseudo_log_likelihood(texts).reshape(-1, 2).T
    return _preferences(
        "Minimal pairs",
        "accuracy",
        (good > bad).astype(float),
        {"": ["all"] * len(pairs), "paradigm": [pair.paradigm for pair in pairs]},
        [
            {**vars(pair), "score_good": float(g), "score_bad": float(b)}
            for pair, g, b in zip(pairs, good, bad, strict=True)
        ],
        ("the grammatical sentences", "the ungrammatical sentences"),
        bootstrap,
    )


def _preferences(
    title: str,
    unit: str,
    preferred: np.ndarray,
    groupings: Mapping[str, Sequence[str]],
    items: Sequence[Mapping[str, Any]],
    sides: tuple[str, str],
    bootstrap: Bootstrap,
) -> ProbeReport:
    estimates = []
    for names in groupings.values():
        labels = np.array(names)
        estimates += [bootstrap.estimate(str(name), preferred[labels == name]) for name in sorted(set(names))]
    neutral = int(np.sum(preferred == 0.5))
    verdict = _preference(estimates[0], 0.5, *sides)
    verdict += f"; {neutral:,} of {len(preferred):,} neutral" if neutral else ""
    return ProbeReport(title, unit, 0.5, verdict, estimates, items)


def _preference(estimate: Estimate, neutral: float, above: str, below: str) -> str:
    if estimate.low is None or estimate.high is None:
        return "a single item: no interval"
    if estimate.low > neutral:
        return f"prefers {above}"
    return f"prefers {below}" if estimate.high < neutral else "no preference found"
