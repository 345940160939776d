"""Contestant: transformers' BertForMaskedLM in a plain PyTorch loop. Its head predicts at every position."""

from itertools import islice
from typing import Any

import numpy as np
import torch
import transformers

from scripts.benchmark.contest import Round, serve
from scripts.benchmark.step_work import StepWork, read_batches

_IGNORED = -100


def hugging_face_batch(batch: dict[str, np.ndarray], padding_id: int) -> dict[str, torch.Tensor]:
    """Converts arrays of `MaskedTokens` to the arguments of BertForMaskedLM."""
    labels = np.full(batch["token_ids"].shape, _IGNORED, np.int64)
    rows, slots = np.nonzero(batch["mask_weights"])
    labels[rows, batch["mask_positions"][rows, slots]] = batch["mask_ids"][rows, slots]
    token_ids = torch.from_numpy(batch["token_ids"].astype(np.int64))
    return {
        "input_ids": token_ids,
        "attention_mask": (token_ids != padding_id).long(),
        "labels": torch.from_numpy(labels),
    }


def hugging_face_model(work: StepWork) -> transformers.BertForMaskedLM:
    """Returns a new model of the work's shape, in training mode."""
    shape = work.model
    config = transformers.BertConfig(
        vocab_size=shape.vocabulary_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        hidden_size=shape.hidden_dim,
        intermediate_size=shape.intermediate_dim,
        hidden_dropout_prob=shape.dropout_rate,
        attention_probs_dropout_prob=shape.attention_dropout_rate,
        max_position_embeddings=shape.max_sequence_length,
    )
    return transformers.BertForMaskedLM(config).train()


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
