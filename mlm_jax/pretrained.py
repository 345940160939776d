"""A trained masked language model as its user holds it: load it, fill masks, measure it."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypedDict

import jax
import numpy as np
from flax import nnx
from jax import Array

from mlm_jax.config import BertConfig, MeshConfig
from mlm_jax.data.sources import open_sources, resolve_masking
from mlm_jax.data.tokenizer import Tokenizer
from mlm_jax.errors import InputError
from mlm_jax.evaluation import Evaluation, evaluate_rows
from mlm_jax.model.bert import abstract_masked_lm
from mlm_jax.program import build_program
from mlm_jax.run_folder import TOKENIZER_FOLDER, load_params, read_config
from mlm_jax.sharding import make_mesh
from mlm_jax.train_step import split_model

_LENGTH_BUCKET = 32


class Candidate(TypedDict):
    """One answer to a mask."""

    score: float
    """Probability in [0, 1]."""
    token: int
    """Its id."""
    token_str: str
    """The vocabulary entry as it stands there, `##` included."""
    sequence: str
    """The text with this mask filled, the other masks left."""


@dataclass(frozen=True)
class MaskedLM:
    """A model's shape, its parameters (a nested dict of arrays on one device) and its tokenizer."""

    config: BertConfig
    params: Any
    tokenizer: Tokenizer

    @classmethod
    def from_run(cls, folder: str | Path) -> Self:
        """The newest whole checkpoint of a run folder, parameters alone.

        Raises:
            InputError: not a run folder, or one without a checkpoint.
        """
        folder = Path(folder)
        config = read_config(folder).model
        _, shapes = split_model(abstract_masked_lm(config))
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=device), shapes)
        return cls(config, load_params(folder, abstract), Tokenizer.load(folder / TOKENIZER_FOLDER))

    def fill_mask(self, text: str, *, top_k: int = 5) -> list[list[Candidate]]:
        """The `top_k` most probable tokens of each `[MASK]` in `text`, best first; a list a mask, left to right.

        Masks are filled independently of one another; special tokens are no answers.

        Raises:
            InputError: no [MASK] in the text, a text longer than the position table, `top_k` below 1.
        """
        answers = self.tokenizer.vocabulary_size - len(self.tokenizer.special_token_ids)
        if not 1 <= top_k <= answers:
            raise InputError(f"top_k = {top_k}: must be in [1, {answers}]")
        tokenizer = self.tokenizer
        body = tokenizer.encode(text, parse_special_tokens=True)
        token_ids = np.concatenate([[tokenizer.cls_token_id], body, [tokenizer.sep_token_id]]).astype(
            np.int32
        )
        longest = self.config.max_sequence_length
        if len(token_ids) > longest:
            raise InputError(f"the text has {len(token_ids)} tokens: the model takes at most {longest}")
        positions = np.flatnonzero(token_ids == tokenizer.mask_token_id)
        if not positions.size:
            raise InputError(f"no [MASK] in {text!r}: must hold at least one")
        probabilities = self._probabilities(token_ids, positions)
        return [
            [
                self._candidate(text, place, token, row[token])
                for token in np.argsort(-row, kind="stable")[:top_k]
            ]
            for place, row in enumerate(probabilities)
        ]

    def _probabilities(self, token_ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """[masks, vocabulary of the tokenizer], from a program compiled once a bucket of lengths."""
        room = -len(token_ids) % _LENGTH_BUCKET
        room = min(room, self.config.max_sequence_length - len(token_ids))
        padded = np.pad(token_ids, (0, room), constant_values=self.tokenizer.pad_token_id)
        slots = np.pad(positions, (0, -len(positions) % 8))
        padding_mask = np.arange(len(padded)) < len(token_ids)
        logits = self._logits(self.params, padded[None], padding_mask[None], slots[None].astype(np.int32))
        logits = np.array(logits[0, : len(positions), : self.tokenizer.vocabulary_size])
        logits[:, list(self.tokenizer.special_token_ids)] = -np.inf
        return np.asarray(jax.nn.softmax(logits, axis=-1))

    @cached_property
    def _logits(self) -> Any:
        graph, _ = split_model(abstract_masked_lm(self.config))

        def logits(params: Any, token_ids: Array, padding_mask: Array, positions: Array) -> Array:
            return nnx.merge(graph, params)(token_ids, padding_mask, positions)

        return jax.jit(logits)

    def _candidate(self, text: str, place: int, token: int, score: float) -> Candidate:
        entry = self.tokenizer.id_to_token(int(token)) or ""
        parts = text.split("[MASK]")
        left, right = "[MASK]".join(parts[: place + 1]), "[MASK]".join(parts[place + 1 :])
        joined = left.rstrip() + entry.removeprefix("##") if entry.startswith("##") else left + entry
        return Candidate(score=float(score), token=int(token), token_str=entry, sequence=joined + right)


def evaluate_run(folder: str | Path, data_path: str | Path) -> Evaluation:
    """Evaluate a run's newest checkpoint on prepared data.

    The rows are made and masked as the run itself evaluates, so the figures are those of its eval.jsonl, except
    that here all rows count, whatever the run's `eval_batches` says.

    Raises:
        InputError: not a run folder, no checkpoint, or data that are not usable or of another tokenizer.
    """
    run = read_config(Path(folder))
    model = MaskedLM.from_run(folder)
    data = replace(run.data, path=str(data_path), eval_path=None)
    sources = open_sources(data)
    if sources.tokenizer.fingerprint != model.tokenizer.fingerprint:
        raise InputError(
            f"{data_path}: prepared with tokenizer {sources.tokenizer.fingerprint[:12]}: the run has "
            f"{model.tokenizer.fingerprint[:12]}"
        )
    program = build_program(
        replace(run, data=data, mesh=MeshConfig(data=1)),
        resolve_masking(run.masking, model.tokenizer, data.sequence_length),
        make_mesh(MeshConfig(data=1), jax.devices()[:1]),
    )
    return evaluate_rows(program, model.params, sources.train)
