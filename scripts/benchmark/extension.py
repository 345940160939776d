"""Loss per byte of unseen text with new words and without them, before and after training."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mlm_jax.corpus.document_hashes import DocumentHashes
from mlm_jax.corpus.documents import read_documents
from mlm_jax.errors import InputError
from mlm_jax.extension.change import Change, add_costly_words, move
from mlm_jax.extension.rows import with_vocabulary
from mlm_jax.extension.word_counts import count_chunks
from mlm_jax.formats.model_folder import StoredModel, flatten_params, nest_params, vocabulary_leaves
from mlm_jax.run.reporting import say
from mlm_jax.store.loading import load_masked_lm
from mlm_jax.text.tokenizer import Tokenizer
from mlm_jax.use.masked_lm import MaskedLM
from scripts.benchmark.table import Cell, Table

_HELD_OUT = 0.05
_CHOSEN = 0.15
_MIN_COUNT = 10
_EVALUATION_BATCH = 128
_MOST_CHARACTERS_PER_TOKEN = 8


@dataclass(frozen=True)
class Training:
    """Settings of the training that follows, the same for every model."""

    num_steps: int
    batch_size: int
    sequence_length: int
    learning_rate: float


@dataclass(frozen=True)
class Passage:
    """Words between spaces of an unseen text, and the numbers of those that are to be predicted."""

    words: Sequence[str]
    chosen: Sequence[int]


def measure_extension(
    name: str,
    texts: Sequence[Path],
    training: Training,
    *,
    num_tokens: int,
    tokenizer: Path | None,
    kinds: Sequence[str],
    num_passages: int,
    rounds: int,
) -> list[Table]:
    """Compares a model with the same model extended by the costly words of a text, over `rounds` seeds of training.

    One document in 20 is held out by a hash of its text; words are counted and models trained on the others.

    Raises:
        InputError: the model, the text or the tokenizer cannot be read, or is of a kind that is not supported.
    """
    documents = dict.fromkeys(read_documents(list(map(str, texts))))
    seen, unseen = ([*DocumentHashes(_HELD_OUT, held_out=side).kept(documents)] for side in (False, True))
    source, chunks = load_masked_lm(name), count_chunks(seen)
    change = add_costly_words(str(texts[0]), source, chunks, num_tokens=num_tokens, min_count=_MIN_COUNT)
    every = {
        "unextended": source,
        "extended": change.model,
        "random-rows": with_random_rows(change),
        "piece-biases": with_vocabulary(source, change.model.tokenizer, change.origins),
    }
    models = {kind: every[kind] for kind in kinds}
    if tokenizer is not None:
        models["moved"] = move(str(tokenizer), source, Tokenizer.load(tokenizer), chunks).model
    # The same passages, whichever models are compared.
    compared = [source.tokenizer, change.model.tokenizer, *(model.tokenizer for model in models.values())]
    words = Words({tokenizer.fingerprint: tokenizer for tokenizer in compared}.values())
    passages = passages_of(unseen, words, training.sequence_length - 2, num_passages)
    new = [with_changed_words(passage, source.tokenizer, change.model.tokenizer) for passage in passages]
    found: dict[str, list[list[float]]] = {kind: [] for kind in models}
    # Round 0 is before any training. All models of a round are trained on the same documents.
    for number in range(rounds + 1):
        drawn = _drawn(seen, training, seed=number)
        for kind, model in models.items():
            lm = MaskedLM(model.config, model.params, model.tokenizer)
            if number:
                settings: dict[str, Any] = vars(training)
                lm.fit(drawn, warmup_steps=training.num_steps // 10, seed=number, **settings)
            in_order, at_once = losses_of(lm, passages)
            found[kind].append([in_order, at_once, losses_of(lm, new)[0]])
            say(f"{kind}, round {number} of {rounds}: {found[kind][-1]}")
    rows: list[tuple[Cell, ...]] = []
    for kind, model in models.items():
        tokens = sum(len(words.rows(word)[model.tokenizer.fingerprint]) for p in passages for word in p.words)
        per_word = tokens / sum(len(passage.words) for passage in passages)
        after = _means(found[kind][1:])
        rows.append((kind, float(model.config.vocabulary_size), per_word, *found[kind][0], *after))
    title = (
        f"{', '.join(path.name for path in texts)}: {num_tokens:,} words for {name}, {training.num_steps} steps of "
        f"{training.batch_size} × {training.sequence_length} tokens, learning rate {training.learning_rate:g}, "
        f"{rounds} seeds"
    )
    losses = ("in order", "at once", "in order, changed words")
    columns = (
        *("model", "rows", "tokens per word"),
        *(f"nats per byte {loss}, {when}" for when in ("before", "after") for loss in losses),
    )
    return [Table(title, columns, rows)]


def with_random_rows(change: Change) -> StoredModel:
    """Returns the model with rows as a new model has them in place of those made of pieces."""
    random, model = np.random.default_rng(0), change.model
    flat, made = flatten_params(model.params), [*change.origins.made]
    for path, leaf in vocabulary_leaves(model.config, flat).items():
        if leaf.ndim == 2:
            flat[path] = leaf.copy()
            flat[path][made] = random.normal(0, model.config.initializer_stddev, (len(made), leaf.shape[1]))
    return replace(model, params=nest_params(flat))


class Words:
    """Token ids of words between spaces, by the fingerprint of a tokenizer."""

    def __init__(self, tokenizers: Iterable[Tokenizer]) -> None:
        self._tokenizers = [*tokenizers]
        self._known: dict[str, dict[str, np.ndarray]] = {}

    def rows(self, word: str) -> Mapping[str, np.ndarray]:
        """Returns the ids of the word after a space."""
        if word not in self._known:
            self._known[word] = {t.fingerprint: t.encode(f" {word}") for t in self._tokenizers}
        return self._known[word]

    def is_known(self, word: str) -> bool:
        """True if no tokenizer has an unknown token in the word, or none at all."""
        return all(
            len(self.rows(word)[t.fingerprint]) and t.unknown_token_id not in self.rows(word)[t.fingerprint]
            for t in self._tokenizers
        )


def passages_of(documents: Iterable[str], words: Words, longest: int, count: int) -> list[Passage]:
    """Returns passages that fit into `longest` tokens of every tokenizer, at most `count`, spread over the documents.

    In each, 15 % of the words that all tokenizers know are chosen at random. Every tokenizer sees the same text.

    Raises:
        InputError: no passage has a word to choose.
    """
    random, found = np.random.default_rng(0), []
    for document in documents:
        split, start = document.split(), 0
        while start < len(split):
            end = _end(split, start, words, longest)
            known = [i for i in range(end - start) if words.is_known(split[start + i])]
            if known:
                chosen = random.choice(known, max(1, round(_CHOSEN * len(known))), replace=False)
                found.append(Passage(split[start:end], sorted(chosen.tolist())))
            # A word that does not fit into a row is left out.
            start = max(end, start + 1)
    if not found:
        raise InputError("none of the documents that are held out has a word to predict; expected more text")
    return [found[i] for i in np.unique(np.linspace(0, len(found) - 1, count).astype(int))]


def _end(split: Sequence[str], start: int, words: Words, longest: int) -> int:
    lengths: dict[str, int] = {}
    for end in range(start, len(split)):
        for key, row in words.rows(split[end]).items():
            lengths[key] = lengths.get(key, 0) + len(row)
        if max(lengths.values()) > longest:
            return end
    return len(split)


def with_changed_words(passage: Passage, old: Tokenizer, new: Tokenizer) -> Passage:
    """Returns the passage with only those of the chosen words that the tokenizers divide differently."""
    texts = [f" {passage.words[i]}" for i in passage.chosen]
    pairs = zip(old.encode_batch(texts), new.encode_batch(texts), strict=True)
    lengths = [len(before) != len(after) for before, after in pairs]
    return Passage(passage.words, [i for i, differs in zip(passage.chosen, lengths, strict=True) if differs])


def losses_of(lm: MaskedLM, passages: Sequence[Passage]) -> tuple[float, float]:
    """Returns the loss of the chosen words in nats per byte of their UTF-8 text, by two definitions.

    All pieces of all chosen words are masked. In order, the pieces of a word are predicted from left to right, each
    with those before it in place (Kauf and Ivanova 2023): the probability of a word of as many pieces, given the words
    that are not chosen. At once, every piece is predicted with all masked, as in training with whole words masked; it
    counts pieces as if they were independent, which a word of several pieces pays for.
    """
    cases = [Case.of(lm.tokenizer, passage) for passage in passages if passage.chosen]
    num_bytes = sum(len(passage.words[i].encode()) for passage in passages for i in passage.chosen)
    first = _loss(lm, [(case.masked, [span.start for span in case.spans], case) for case in cases])
    later = _loss(lm, [row for case in cases for row in case.later])
    every = _loss(lm, [(case.masked, [i for span in case.spans for i in span], case) for case in cases])
    return (first + later) / num_bytes, every / num_bytes


@dataclass(frozen=True)
class Case:
    """A passage as one tokenizer sees it."""

    row: np.ndarray
    """int32 `[length]`, framed."""
    spans: Sequence[range]
    """Positions of the chosen words."""
    mask_token_id: int

    @staticmethod
    def of(tokenizer: Tokenizer, passage: Passage) -> "Case":
        """Returns the passage in the ids of a tokenizer."""
        pieces = tokenizer.encode_batch([f" {word}" for word in passage.words])
        starts = 1 + np.cumsum([0, *map(len, pieces)])
        ends = [[tokenizer.cls_token_id], [tokenizer.sep_token_id]]
        row = np.concatenate([ends[0], *pieces, ends[1]]).astype(np.int32)
        spans = [range(int(starts[i]), int(starts[i + 1])) for i in passage.chosen]
        return Case(row, spans, tokenizer.mask_token_id)

    @cached_property
    def masked(self) -> np.ndarray:
        """The row with all chosen words masked."""
        row = self.row.copy()
        row[[i for span in self.spans for i in span]] = self.mask_token_id
        return row

    @property
    def later(self) -> list[tuple[np.ndarray, list[int], "Case"]]:
        """Rows that each predict a piece of a word after its first, with the pieces before it in place."""
        rows = []
        for span in self.spans:
            for position in span[1:]:
                row = self.masked.copy()
                row[span.start : position] = self.row[span.start : position]
                rows.append((row, [position], self))
        return rows


def _loss(lm: MaskedLM, rows: Sequence[tuple[np.ndarray, list[int], Case]]) -> float:
    """Returns the sum of the losses of rows at the given positions, in nats."""
    if not rows:
        return 0.0
    length, predicted = max(len(row) for row, _, _ in rows), max(len(at) for _, at, _ in rows)
    # Full batches of one shape; rows without a position add nothing.
    count = -(-len(rows) // _EVALUATION_BATCH) * _EVALUATION_BATCH
    token_ids = np.full((count, length), lm.tokenizer.pad_token_id, np.int32)
    padding = np.zeros((count, length), bool)
    positions, labels = (np.zeros((count, predicted), np.int32) for _ in range(2))
    padding[:, 0] = True
    for i, (row, at, case) in enumerate(rows):
        token_ids[i, : len(row)], padding[i, : len(row)] = row, True
        positions[i, : len(at)], labels[i, : len(at)] = at, case.row[at]
    batch = {"token_ids": token_ids, "padding_mask": padding, "mask_positions": positions, "labels": labels}
    found = lm.evaluate(batch, batch_size=_EVALUATION_BATCH)
    return found.mlm_loss * found.masked_tokens


def _drawn(documents: Sequence[str], training: Training, *, seed: int) -> list[str]:
    """Returns documents in random order, as many as the steps can read; encoding all of a corpus would take longer."""
    wanted = training.num_steps * training.batch_size * training.sequence_length * _MOST_CHARACTERS_PER_TOKEN
    drawn: list[str] = []
    for i in np.random.default_rng(seed).permutation(len(documents)):
        drawn.append(documents[i])
        wanted -= len(documents[i])
        if wanted <= 0:
            break
    return drawn


def _means(losses: Sequence[Sequence[float]]) -> list[Cell]:
    """Returns the mean of each loss over the rounds, with its standard deviation if there are several."""
    if not losses:
        return [None] * 3
    means = [f"{mean:.4f}" for mean in np.mean(losses, axis=0)]
    if len(losses) == 1:
        return [*means]
    return [f"{mean} ± {std:.4f}" for mean, std in zip(means, np.std(losses, axis=0, ddof=1), strict=True)]
