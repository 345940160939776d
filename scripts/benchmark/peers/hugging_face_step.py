"""Contestant: transformers' masked LM in a plain PyTorch loop. Its head predicts at every position."""

from itertools import islice
from typing import Any

import numpy as np
import torch
import transformers

from mlm_jax.families.registry import family_of
from scripts.benchmark.contest import Round, serve
from scripts.benchmark.step_work import PADDING_ID, StepWork, read_batches

_IGNORED = -100


def hugging_face_batch(batch: dict[str, np.ndarray], padding_id: int) -> dict[str, torch.Tensor]:
    """Converts arrays of `MaskedTokens` to the arguments of the model."""
    labels = np.full(batch["token_ids"].shape, _IGNORED, np.int64)
    rows, slots = np.nonzero(batch["mask_weights"])
    labels[rows, batch["mask_positions"][rows, slots]] = batch["mask_ids"][rows, slots]
    token_ids = torch.from_numpy(batch["token_ids"].astype(np.int64))
    return {
        "input_ids": token_ids,
        "attention_mask": (token_ids != padding_id).long(),
        "labels": torch.from_numpy(labels),
    }


def hugging_face_model(work: StepWork, **options: Any) -> transformers.PreTrainedModel:
    """Returns a new masked LM of the work's shape, in training mode; `options` are those of `from_config`."""
    family = family_of(work.model)
    settings = family.settings_of(work.model) | {"pad_token_id": PADDING_ID}
    config = transformers.AutoConfig.for_model(family.model_type, **settings)
    return transformers.AutoModelForMaskedLM.from_config(config, **options).train()


def prepare(settings: dict[str, Any]) -> tuple[Round, dict[str, Any]]:
    """Returns a round of `steps` steps; units are sequences."""
    work = StepWork(**settings["work"])
    model = hugging_face_model(work)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
    padding_id = work.masking.padding_token_id
    batches = (
        hugging_face_batch(batch, padding_id) for batch in read_batches(settings["batches"], work.batch_size)
    )

    def steps() -> float:
        for batch in islice(batches, work.steps):
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return work.steps * work.batch_size

    return steps, {"version": f"transformers {transformers.__version__}, torch {torch.__version__}"}


if __name__ == "__main__":
    serve(prepare)
