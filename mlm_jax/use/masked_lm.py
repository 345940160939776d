"""A masked language model as its user holds it: load it, ask it, train it on, save it."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mlm_jax.config import BertConfig
from mlm_jax.config.masking import MaskingRecipe
from mlm_jax.errors import InputError
from mlm_jax.files import new_folder
from mlm_jax.formats.model_folder import StoredModel, write_model_folder
from mlm_jax.model.bert import BertEncoder, abstract_masked_lm
from mlm_jax.step.evaluation import Evaluation
from mlm_jax.step.train_step import split_model
from mlm_jax.store.loading import load_masked_lm
from mlm_jax.text.tokenizer import Tokenizer
from mlm_jax.use.evaluate import evaluate_batches, evaluate_texts
from mlm_jax.use.fill_mask import (
    independent_candidates,
    joint_candidates,
    prompts_of,
    rank_targets,
    target_pieces,
)
from mlm_jax.use.fine_tuning import (
    FitResult,
    fit_batches,
    fit_settings,
    fit_texts,
    settings_of,
    text_rows,
)
from mlm_jax.use.inference import Inference, Pooling

_DEFAULT_RECIPE = MaskingRecipe()
# So many rows with one token masked are held at once, and the whole vocabulary's probabilities for so many texts.
_ROWS_AT_ONCE = 4096
_TEXTS_AT_ONCE = 512


class MaskedLM:
    """A model's shape, its parameters and its tokenizer.

    `params` is a nested dict of float32 arrays on the first device; `fit` replaces it.
    """

    def __init__(self, config: BertConfig, params: Any, tokenizer: Tokenizer) -> None:
        self.config = config
        self.params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
        self.tokenizer = tokenizer

    @classmethod
    def from_preset(
        cls,
        model: str | Path,
        *,
        load_weights: bool = True,
        tokenizer: Tokenizer | None = None,
        seed: int = 0,
    ) -> Self:
        """The masked LM that `model` names: a built-in name, `hf://user/model`, `kaggle://handle`, or a folder.

        A folder may be a run of scripts/train.py (its newest whole checkpoint), one that `save` or a conversion
        made, or one of Hugging Face, Google or KerasHub. `load_weights=False` gives the architecture at random,
        drawn from `seed`; a `tokenizer` replaces the model's own.

        Raises:
            InputError: there is no such model, its files are not usable, or it has no masked-LM head.
        """
        stored = load_masked_lm(model, load_weights=load_weights, tokenizer=tokenizer, seed=seed)
        return cls(stored.config, stored.params, stored.tokenizer)

    def save(self, folder: str | Path) -> None:
        """Write the model into a new folder, whole or not at all; `from_preset` and conversions read it.

        Raises:
            InputError: the folder is there already.
        """
        with new_folder(Path(folder)) as partial:
            params = jax.tree.map(np.asarray, self.params)
            write_model_folder(partial, StoredModel(self.config, params, self.tokenizer))

    @property
    def backbone(self) -> BertEncoder:
        """The encoder with the parameters of now: `backbone(token_ids, padding_mask)` gives hidden states."""
        graph, _ = split_model(abstract_masked_lm(self.config))
        return nnx.merge(graph, self.params).encoder

    # Asking.

    def fill_mask(
        self,
        text: str | Sequence[str],
        *,
        top_k: int = 5,
        targets: Sequence[str] | None = None,
        joint: bool = True,
    ) -> list[Any]:
        """The `top_k` best answers to the `[MASK]` of a text, best first; of several texts, a list for each.

        An answer is a `Candidate`: score, token, token_str, sequence. A score is a probability over the whole
        vocabulary; special tokens are no answers.

        Several masks in one text are filled together: a beam search fills the mask it is surest of first and goes on
        from what then stands there; score is the product, token and token_str are lists. With `joint=False` each
        mask is answered by itself: a list of answers for each, left to right.

        `targets` restricts the answers to those words. Words of several pieces are scored by the product of each
        piece's probability given the others (pseudo-log-likelihood, Salazar et al. 2020).

        Raises:
            InputError: a text is empty, too long or has no [MASK]; `top_k` is below 1; a target is unknown, or has
                several pieces where the text has several masks.
        """
        texts = [text] if isinstance(text, str) else list(text)
        if not texts:
            raise InputError("fill_mask: no text: must be at least one")
        prompts = prompts_of(texts, self.tokenizer, self.config.max_sequence_length)
        ordinary = np.setdiff1d(
            np.arange(self.tokenizer.vocabulary_size), np.array(self.tokenizer.special_token_ids)
        )
        if not 1 <= top_k <= len(ordinary):
            raise InputError(f"top_k = {top_k}: must be in [1, {len(ordinary)}]")
        several_masks = [len(prompt.positions) > 1 for prompt in prompts]
        if targets is not None:
            pieces = target_pieces(targets, self.tokenizer)
            if any(len(ids) > 1 for ids in pieces.values()):
                if any(several_masks):
                    raise InputError(
                        "targets of several pieces: must be of one where a text has several masks"
                    )
                longest = self.config.max_sequence_length
                score = self.token_log_probabilities
                ranked = [
                    rank_targets(prompt, pieces, score, self.tokenizer, longest, top_k) for prompt in prompts
                ]
                return ranked[0] if isinstance(text, str) else ranked
            ordinary = np.unique([int(ids[0]) for ids in pieces.values()])
        arguments = (self._log_probabilities, self.tokenizer, ordinary, min(top_k, len(ordinary)))
        results: dict[int, Any] = {}
        together = [number for number, several in enumerate(several_masks) if several and joint]
        alone = [number for number in range(len(prompts)) if number not in together]
        for part in _parts(together):
            found = joint_candidates([prompts[number] for number in part], *arguments)
            results |= dict(zip(part, found, strict=True))
        for part in _parts(alone):
            each = independent_candidates([prompts[number] for number in part], *arguments)
            for number, masks in zip(part, each, strict=True):
                results[number] = masks if several_masks[number] else masks[0]
        return results[0] if isinstance(text, str) else [results[number] for number in range(len(prompts))]

    def features(
        self,
        texts: Sequence[str],
        *,
        layer: int = -1,
        pooling: Pooling = "none",
        truncate: bool = False,
    ) -> Any:
        """Hidden states of texts, float32.

        `layer` counts as Hugging Face's `hidden_states` do: 0 is the embeddings' output, then the layers; -1 is the
        last. `"none"` gives an array [tokens, hidden_dim] for each text, [CLS] and [SEP] included; `"cls"` the first
        position and `"mean"` the mean of all tokens (those two included, as sentence-transformers has it), both
        [texts, hidden_dim]. With `truncate` a text that is too long is cut, and else refused.

        Raises:
            InputError: there is no such layer, no text, or a text is too long.
        """
        depths = range(self.config.num_layers + 1)
        if not -len(depths) <= layer < len(depths):
            raise InputError(f"layer = {layer}: must be in [{-len(depths)}, {len(depths)})")
        if pooling not in ("none", "cls", "mean"):
            raise InputError(f"pooling = {pooling!r}: must be 'none', 'cls' or 'mean'")
        rows = self._rows(texts, truncate=truncate)
        found = self._inference.features(self.params, rows, depths[layer], pooling)
        return found if pooling == "none" else np.stack(found)

    def pseudo_log_likelihood(self, texts: Sequence[str], *, per_token: bool = False) -> Any:
        """The sum over a text's tokens of ln P(token | the others), each masked in turn (Salazar et al. 2020).

        Float64 [texts], or with `per_token` a list for each text of (vocabulary entry, log-probability).

        Raises:
            InputError: there is no text, or one is too long.
        """
        rows = self._rows(texts)
        positions = [np.arange(1, len(row) - 1) for row in rows]
        found = self.token_log_probabilities(rows, positions)
        if not per_token:
            return np.array([chances.sum() for chances in found])
        return [
            [
                (self.tokenizer.id_to_token(int(token)) or "", float(chance))
                for token, chance in zip(row[1:-1], chances, strict=True)
            ]
            for row, chances in zip(rows, found, strict=True)
        ]

    def mask_log_probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Float32 [texts, vocabulary]: ln P of every entry at the first [MASK] of each text, further ones masked too.

        Raises:
            InputError: a text is empty, too long, or has no [MASK].
        """
        prompts = prompts_of(list(texts), self.tokenizer, self.config.max_sequence_length)
        rows = [prompt.token_ids for prompt in prompts]
        return np.concatenate(self._log_probabilities(rows, [prompt.positions[:1] for prompt in prompts]))

    def token_log_probabilities(
        self, rows: Sequence[np.ndarray], positions: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """Of each row (int [length], with [CLS] and [SEP]) and each of its `positions`, in float64: the natural log
        of the probability of the token that stands there, with that position alone masked."""
        lengths = np.array([len(places) for places in positions])
        owners = np.repeat(np.arange(len(rows)), lengths)
        places = np.concatenate([np.asarray(p, np.int64) for p in positions])
        chances = np.empty(len(owners), np.float64)
        for first in range(0, len(owners), _ROWS_AT_ONCE):
            part = slice(first, first + _ROWS_AT_ONCE)
            masked, truth = [], []
            for owner, place in zip(owners[part], places[part], strict=True):
                row = np.array(rows[owner], np.int32)
                truth.append(row[place])
                row[place] = self.tokenizer.mask_token_id
                masked.append(row)
            chances[part] = self._inference.picked_log_probabilities(
                self.params, masked, places[part], np.array(truth)
            )
        return np.split(chances, np.cumsum(lengths)[:-1])

    # Training on.

    def fit(
        self,
        data: Any,
        *,
        num_steps: int,
        batch_size: int = 32,
        learning_rate: float = 5e-5,
        warmup_steps: int = 0,
        layer_rate_decay: float = 1.0,
        freeze_backbone: bool = False,
        masking: MaskingRecipe = _DEFAULT_RECIPE,
        sequence_length: int | None = None,
        seed: int = 0,
    ) -> FitResult:
        """Train the model on for `num_steps` steps of AdamW, the rate falling linearly to 0; `params` is new then.

        `data` is a list of strings, masked anew in every epoch by `masking`, each in rows of its own, as long as the
        longest or `sequence_length`; or batches that are masked already, as a mapping of arrays or an iterable of
        them: token_ids, mask_positions, labels, and padding_mask, segment_ids, mask_weights where they matter (see
        `mlm_jax.use.fine_tuning.masked_batches`). The batch is split over the local devices that divide it.
        `layer_rate_decay` is that of `OptimizerConfig`: below 1 the first layers learn more slowly than the last.

        Raises:
            InputError: the data or a setting is not usable.
            RunError: the loss was no longer finite; the model is as it was.
        """
        settings = fit_settings(
            self.config,
            num_steps=num_steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            warmup_steps=warmup_steps,
            layer_rate_decay=layer_rate_decay,
            freeze_backbone=freeze_backbone,
            seed=seed,
        )
        if _is_texts(data):
            rows = text_rows(data, self.tokenizer, sequence_length, self.config.max_sequence_length)
            self.params, result = fit_texts(settings, self.params, rows, masking, self.tokenizer)
        else:
            self.params, result = fit_batches(settings, self.params, data, self.tokenizer)
        return result

    def evaluate(
        self,
        data: Any,
        *,
        batch_size: int = 32,
        masking: MaskingRecipe = _DEFAULT_RECIPE,
        sequence_length: int | None = None,
    ) -> Evaluation:
        """Loss and accuracy on what `fit` takes, with masks that are the same every time.

        Raises:
            InputError: the data or a setting is not usable.
        """
        settings = settings_of(self.config, batch_size=batch_size)
        if not _is_texts(data):
            return evaluate_batches(settings, self.params, data, self.tokenizer)
        rows = text_rows(data, self.tokenizer, sequence_length, self.config.max_sequence_length)
        return evaluate_texts(settings, self.params, rows, masking, self.tokenizer)

    # Within.

    @cached_property
    def _inference(self) -> Inference:
        return Inference(self.config, self.tokenizer.pad_token_id)

    def _log_probabilities(
        self, rows: Sequence[np.ndarray], positions: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        return self._inference.log_probabilities(self.params, rows, positions)

    def _rows(self, texts: Sequence[str], *, truncate: bool = False) -> list[np.ndarray]:
        """Texts as [CLS] … [SEP]."""
        if isinstance(texts, str) or not len(texts):
            raise InputError("texts: must be a list of at least one string")
        tokenizer, longest = self.tokenizer, self.config.max_sequence_length
        rows = []
        for index, body in enumerate(tokenizer.encode_batch(list(texts))):
            if len(body) + 2 > longest and not truncate:
                raise InputError(
                    f"text {index}: has {len(body) + 2} tokens: the model takes at most {longest}"
                )
            ends = (tokenizer.cls_token_id, tokenizer.sep_token_id)
            rows.append(np.concatenate([ends[:1], body[: longest - 2], ends[1:]]).astype(np.int32))
        return rows


def _parts(numbers: Sequence[int]) -> list[Sequence[int]]:
    return [numbers[first : first + _TEXTS_AT_ONCE] for first in range(0, len(numbers), _TEXTS_AT_ONCE)]


def _is_texts(data: Any) -> bool:
    if isinstance(data, str):
        raise InputError("data: found one string: must be a list of strings, or batches")
    return isinstance(data, Sequence) and len(data) > 0 and isinstance(data[0], str)
