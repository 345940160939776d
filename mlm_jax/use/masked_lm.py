"""MaskedLM: loading, prediction, fine-tuning, evaluation and saving of a masked language model."""

import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from mlm_jax.config import BertConfig
from mlm_jax.config.masking import MaskingRecipe
from mlm_jax.config.training_record import TrainingRecord
from mlm_jax.corpus.progress import progress_bar
from mlm_jax.data.batches import Rows
from mlm_jax.errors import InputError
from mlm_jax.files.atomic import new_folder
from mlm_jax.files.targets import target_path
from mlm_jax.formats.model_folder import StoredModel, check_model, random_model, write_model_folder
from mlm_jax.model.bert import BertEncoder, abstract_masked_lm
from mlm_jax.run.reporting import say
from mlm_jax.step.evaluation import Evaluation
from mlm_jax.store.loading import load_model
from mlm_jax.text.encode import UnknownTokens
from mlm_jax.text.tokenizer import Tokenizer
from mlm_jax.use.descriptions import TrainedLength, shape_of, trained_on
from mlm_jax.use.evaluate import evaluate_batches, evaluate_texts
from mlm_jax.use.fill_mask import Prompt, candidates_of, prompts_of
from mlm_jax.use.fine_tuning import (
    FitResult,
    check_text_settings,
    counted_batches,
    fit_batches,
    fit_settings,
    fit_texts,
    settings_of,
    steps_of,
    text_rows,
    texts_in,
)
from mlm_jax.use.inference import Inference, Pooling, token_log_probabilities
from mlm_jax.use.labels import check_count, check_switch, listed

_DEFAULT_RECIPE = MaskingRecipe()


class MaskedLM:
    """A masked language model: its config, parameters and tokenizer.

    `params` is a nested dict of float32 arrays on the first device: the encoder and, unless the model has none, the
    masked-LM head. `fit` replaces it. `training` records the rows that the model was trained with, if known; longer
    rows are reported on stderr. Raises InputError if the parameters or the tokenizer are not those of the config. If
    `progress` is True, calls that take longer than two seconds show a progress bar on
    stderr if it is a terminal.
    """

    progress = False

    def __init__(
        self, config: BertConfig, params: Any, tokenizer: Tokenizer, training: TrainingRecord | None = None
    ) -> None:
        check_model(config, params, tokenizer)
        self.config = config
        self.params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
        self.tokenizer = tokenizer
        self.training = training
        self._trained_length = TrainedLength(training)

    def __repr__(self) -> str:
        head = "" if "head" in self.params else ", no masked-LM head"
        return f"MaskedLM({shape_of(self.config, self.params)}{head}, {self.tokenizer!r})"

    @classmethod
    def from_preset(
        cls,
        model: str | Path,
        *,
        load_weights: bool = True,
        tokenizer: Tokenizer | None = None,
        seed: int = 0,
    ) -> Self:
        """Loads a masked LM by built-in name, `hf://user/model` or `kaggle://handle`, or from a folder.

        The folder can be a run folder (its newest intact checkpoint), a folder written by `save` or a conversion, or a
        folder of Hugging Face, Google or KerasHub. With `load_weights=False`, the parameters are random, drawn from
        `seed`. A `tokenizer` replaces the model's own. A model without a masked-LM head, such as a sentence encoder or
        a classifier, has features but no predictions, and `fit` gives it a new head.

        Raises:
            InputError: there is no such model, or its files are unusable.
        """
        stored = load_model(model, load_weights=load_weights, tokenizer=tokenizer, seed=seed)
        params = {part: stored.params[part] for part in ("encoder", "head") if part in stored.params}
        return cls(stored.config, params, stored.tokenizer, stored.training)

    def save(self, folder: str | Path) -> None:
        """Writes the model atomically to a new folder, which `from_preset` and conversions can read.

        Raises:
            InputError: the folder exists.
        """
        with new_folder(target_path(folder)) as partial:
            params = jax.tree.map(np.asarray, self.params)
            stored = StoredModel(self.config, params, self.tokenizer, training=self.training)
            write_model_folder(partial, stored)

    @property
    def backbone(self) -> BertEncoder:
        """Encoder with the current parameters: `backbone(token_ids, padding_mask)` returns hidden states."""
        graph, _ = nnx.split(nnx.eval_shape(lambda: abstract_masked_lm(self.config).encoder), nnx.Param)
        return nnx.merge(graph, self.params["encoder"])

    # Prediction.

    def fill_mask(
        self,
        text: str | Sequence[str],
        *,
        top_k: int = 5,
        targets: Sequence[str] | None = None,
        joint: bool = True,
    ) -> list[Any]:
        """Returns the `top_k` best candidates for the `[MASK]` of a text, best first, or a list of them per text.

        A candidate is a `Candidate`: score, token, token_str, sequence. The score is a probability over the whole
        vocabulary. Special tokens are never candidates.

        Several masks in a text are filled jointly: a beam search first fills the mask with the most confident
        prediction, then predicts the others given that token. The score is then the product of the probabilities, and
        token and token_str are lists. With `joint=False`, each mask is filled independently, and the result has a list
        of candidates per mask, from left to right.

        `targets` restricts the candidates to these words. Words of several pieces are scored by the product of each
        piece's probability given the others (pseudo-log-likelihood, Salazar et al. 2020).

        Raises:
            InputError: a text is empty, too long or has no [MASK]; `top_k` is below 1; a target is unknown, or has
                several pieces although the text has several masks.
        """
        prompts = self._prompts([text] if isinstance(text, str) else text)
        found = candidates_of(
            prompts,
            self._log_probabilities,
            self.token_log_probabilities,
            self.tokenizer,
            longest=self.config.max_sequence_length,
            top_k=top_k,
            targets=targets,
            joint=joint,
        )
        return found[0] if isinstance(text, str) else found

    def features(
        self,
        texts: Sequence[str],
        *,
        layers: int | Sequence[int] = -1,
        pooling: Pooling = "none",
        truncate: bool = False,
    ) -> Any:
        """Returns hidden states of texts, float32.

        `layers` are indices into Hugging Face's `hidden_states`: 0 is the output of the embeddings, -1 that of the last
        layer. With pooling `"none"`, returns an array [tokens, hidden_dim] per text, including [CLS] and [SEP]. `"cls"`
        uses the first position, `"mean"` the mean and `"max"` the maximum over all tokens including [CLS] and [SEP], as
        in sentence-transformers; these return [texts, hidden_dim]. A list of layers adds an axis before the last, such
        as [texts, layers, hidden_dim]. An empty text consists of [CLS] and [SEP]. With `truncate`, texts that are too
        long are truncated instead of rejected.

        Raises:
            InputError: there is no such layer, no text, or a text is not a string or is too long.

        Warns if more than 1 % of the tokens are unknown.
        """
        return self.features_of_rows(self.encode(texts, truncate=truncate), layers=layers, pooling=pooling)

    def features_of_rows(
        self, rows: Sequence[np.ndarray], *, layers: int | Sequence[int] = -1, pooling: Pooling = "none"
    ) -> Any:
        """Returns the features of the result of `encode`; see `features`.

        Raises InputError also if a row is empty, too long, or has ids that the model does not have.
        """
        self._check_rows(rows)
        depths = self._depths(layers)
        if pooling not in get_args(Pooling):
            raise InputError(
                f"pooling = {pooling!r}: must be one of {', '.join(map(repr, get_args(Pooling)))}"
            )
        with self._bar(len(rows)) as bar:
            found = self._inference.features(self.params, rows, depths, pooling, bar.update)
        return found if pooling == "none" else np.stack(found)

    def pseudo_log_likelihood(self, texts: Sequence[str], *, per_token: bool = False) -> Any:
        """Returns the sum of ln P(token | the others) over a text's tokens, each masked in turn (Salazar et al. 2020).

        The result is float64 [texts] or, with `per_token`, a list of (vocabulary entry, log-probability) per text.

        Raises:
            InputError: there is no text, or one is too long.

        Warns if more than 1 % of the tokens are unknown.
        """
        rows = self.encode(texts)
        check_switch("per_token", per_token)
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
        """Returns float32 [texts, vocabulary]: ln P of every entry at the first [MASK] of each text.

        Other masks of a text stay masked.

        Raises:
            InputError: a text is empty, too long, or has no [MASK].
        """
        prompts = self._prompts(texts)
        rows = [prompt.token_ids for prompt in prompts]
        return np.concatenate(self._log_probabilities(rows, [prompt.positions[:1] for prompt in prompts]))

    def token_log_probabilities(
        self, rows: Sequence[np.ndarray], positions: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """Returns the log-probability of the token at each position, with only that position masked.

        `rows` are the result of `encode`, `positions` int [positions] per row; the result is float64 [positions] per
        row.

        Raises:
            InputError: the model has no masked-LM head, a row is empty, too long, or has ids that the model does not
                have, or a position is outside its row.
        """
        self._check_rows(rows)
        if len(positions) != len(rows):
            raise InputError(f"{len(positions)} lists of positions: must be one for each of {len(rows)} rows")
        for index, (row, places) in enumerate(zip(rows, positions, strict=True)):
            # As positions, True and False would be the first two.
            if len(places) and np.asarray(places).dtype.kind not in "iu":
                raise InputError(f"positions {index}: must be whole numbers")
            if len(places) and not 0 <= min(places) <= max(places) < len(row):
                raise InputError(f"positions {index}: must be in [0, {len(row)}), the length of the row")
        mask_token_id = self.tokenizer.mask_token_id
        params = self._params_with_head()
        with self._bar(sum(map(len, positions))) as bar:
            return token_log_probabilities(
                self._inference, params, rows, positions, mask_token_id, bar.update
            )

    def encode(
        self, texts: Sequence[str], *, truncate: bool = False, unknown: UnknownTokens | None = None
    ) -> list[np.ndarray]:
        """Returns the token ids of each text with [CLS] and [SEP], int32 [length].

        Raises:
            InputError: there is no text, or one is not a string, or is too long and `truncate` is False.

        Warns if more than 1 % of the tokens are unknown, or if a text has the name of a special token, which is read as
        ordinary text. If the texts come in parts, `unknown` counts unknown tokens instead, and nothing is warned of.
        """
        texts = listed(texts, "texts")
        check_switch("truncate", truncate)
        tokenizer, longest = self.tokenizer, self.config.max_sequence_length
        ends = (tokenizer.cls_token_id, tokenizer.sep_token_id)
        rows, bodies = [], tokenizer.encode_batch(texts)
        if unknown is not None:
            unknown.count_texts(texts, bodies)
        else:
            for warning in (tokenizer.unknown_warning(texts, bodies), tokenizer.literal_warning(texts)):
                if warning:
                    warnings.warn(f"texts: {warning}", stacklevel=2)
        for index, body in enumerate(bodies):
            if len(body) + 2 > longest and not truncate:
                raise InputError(
                    f"text {index}: has {len(body) + 2} tokens: the model takes at most {longest}: "
                    f"{texts[index][:60]!r}…"
                )
            rows.append(np.concatenate([ends[:1], body[: longest - 2], ends[1:]]).astype(np.int32))
        self._trained_length.check(rows)
        return rows

    # Training and evaluation.

    def fit(
        self,
        data: Any,
        *,
        num_steps: int | None = None,
        num_epochs: int | None = None,
        batch_size: int = 32,
        learning_rate: float = 5e-5,
        warmup_steps: int = 0,
        layer_rate_decay: float = 1.0,
        freeze_backbone: bool = False,
        masking: MaskingRecipe = _DEFAULT_RECIPE,
        sequence_length: int | None = None,
        seed: int = 0,
    ) -> FitResult:
        """Trains the model with AdamW and a linear decay to 0, and replaces `params`.

        Trains for `num_steps` steps or `num_epochs` passes over the data, by default one pass; the last step of a pass
        may contain rows of the next, and no batch of a pass has more rows than the data. A model without a masked-LM
        head gets a random one, drawn from `seed`, which is reported on stderr.

        `data` is a list of strings, or batches that are already masked. Strings get new masks from `masking` in every
        epoch; each starts a row, and rows have `sequence_length` tokens, by default as many as the longest text.
        Batches are a mapping of arrays or an iterable of mappings: token_ids, mask_positions and labels, optionally
        padding_mask, segment_ids and mask_weights (see `mlm_jax.use.masked_batches`). A batch is split over the local
        devices that divide it. `layer_rate_decay` is as in `OptimizerConfig`: below 1, the first layers learn more
        slowly than the last.

        Raises:
            InputError: the data or a setting is invalid.
            RunError: the loss is no longer finite; the model is unchanged.
        """
        texts = texts_in(data)
        check_text_settings(texts, masking, sequence_length)
        check_count("batch_size", batch_size)
        if texts is None:
            data, steps_per_epoch = counted_batches(data, batch_size, counts=num_steps is None)
        else:
            rows, longest = self._text_rows(texts, sequence_length)
            if num_steps is None:
                # Otherwise, several passes over a few texts would be a single step.
                batch_size = min(batch_size, rows.num_rows)
            steps_per_epoch = rows.num_rows / batch_size
        settings = fit_settings(
            self.config,
            num_steps=steps_of(num_steps, num_epochs, steps_per_epoch),
            batch_size=batch_size,
            learning_rate=learning_rate,
            warmup_steps=warmup_steps,
            layer_rate_decay=layer_rate_decay,
            freeze_backbone=freeze_backbone,
            seed=seed,
        )
        params = self.params
        if "head" not in params:
            say("the masked-LM head has random weights and is trained from the start")
            head = random_model(self.config, self.tokenizer, seed).params["head"]
            params = params | {"head": jax.tree.map(jnp.asarray, head)}
        if texts is None:
            self.params, result = fit_batches(settings, params, data, self.tokenizer)
        else:
            self.params, result = fit_texts(settings, params, rows, masking, self.tokenizer)
            self.training = trained_on(self.training, longest)
            self._trained_length = TrainedLength(self.training)
        return result

    def evaluate(
        self,
        data: Any,
        *,
        batch_size: int = 32,
        masking: MaskingRecipe = _DEFAULT_RECIPE,
        sequence_length: int | None = None,
    ) -> Evaluation:
        """Returns loss and accuracy on the same kinds of data as `fit`, with the same masks on every call.

        Raises:
            InputError: the data or a setting is invalid, or the model has no masked-LM head.
        """
        params, settings = self._params_with_head(), settings_of(self.config, batch_size=batch_size)
        texts = texts_in(data)
        check_text_settings(texts, masking, sequence_length)
        if texts is None:
            return evaluate_batches(settings, params, data, self.tokenizer)
        rows, longest = self._text_rows(texts, sequence_length)
        self._trained_length.check_length(longest)
        return evaluate_texts(settings, params, rows, masking, self.tokenizer)

    # Internals.

    @cached_property
    def _inference(self) -> Inference:
        return Inference(self.config, self.tokenizer.pad_token_id)

    def _log_probabilities(
        self, rows: Sequence[np.ndarray], positions: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        params = self._params_with_head()
        with self._bar(len(rows)) as bar:
            return self._inference.log_probabilities(params, rows, positions, bar.update)

    def _params_with_head(self) -> Any:
        if "head" not in self.params:
            raise InputError("the model has no masked-LM head, only features: fit trains a new head")
        return self.params

    def _prompts(self, texts: Any) -> list[Prompt]:
        prompts = prompts_of(texts, self.tokenizer, self.config.max_sequence_length)
        self._trained_length.check([prompt.token_ids for prompt in prompts])
        return prompts

    def _text_rows(self, texts: Sequence[str], sequence_length: int | None) -> tuple[Rows, int]:
        return text_rows(texts, self.tokenizer, sequence_length, self.config.max_sequence_length)

    def _depths(self, layers: int | Sequence[int]) -> int | tuple[int, ...]:
        """Returns the depth of each layer index. Raises InputError if there is no such layer."""
        depths = range(self.config.num_layers + 1)
        wanted = [layers] if isinstance(layers, int | np.integer) else listed(layers, "layers")
        for layer in wanted:
            is_index = isinstance(layer, int | np.integer) and not isinstance(layer, bool)
            if not is_index or not -len(depths) <= layer < len(depths):
                raise InputError(f"layers = {layer!r}: must be in [{-len(depths)}, {len(depths)})")
        found = tuple(depths[layer] for layer in wanted)
        return found[0] if isinstance(layers, int | np.integer) else found

    def _check_rows(self, rows: Sequence[Any]) -> None:
        """Raises InputError for rows that `encode` does not return: ids out of range would be those of other tokens."""
        size, longest = self.config.vocabulary_size, self.config.max_sequence_length
        if not hasattr(rows, "__len__") or not len(rows):
            raise InputError("rows: must be a list of at least one, as `encode` returns it")
        for index, row in enumerate(rows):
            ids = np.asarray(row)
            if ids.ndim != 1 or ids.dtype.kind not in "iu" or not 0 < len(ids) <= longest:
                raise InputError(
                    f"row {index}: must have from 1 to {longest} token ids, as `encode` returns them"
                )
            if ids.min() < 0 or ids.max() >= size:
                raise InputError(
                    f"row {index}: must have ids in [0, {size}), found {ids.min()} to {ids.max()}"
                )

    def _bar(self, num_rows: int) -> tqdm:
        return progress_bar(num_rows, "row", shown=self.progress)
