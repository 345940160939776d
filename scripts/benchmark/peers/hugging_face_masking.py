"""Contestant: transformers' DataCollatorForLanguageModeling, as its Trainer calls it, in one process."""

import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

from scripts.benchmark.contest import Round, serve
from scripts.benchmark.step_work import CLS_ID, MASK_ID, PADDING_ID, SEP_ID, UNKNOWN_ID, StepWork, token_rows

_SPECIAL = {
    PADDING_ID: "[PAD]",
    UNKNOWN_ID: "[UNK]",
    CLS_ID: "[CLS]",
    SEP_ID: "[SEP]",
    MASK_ID: "[MASK]",
}


def prepare(settings: dict[str, Any]) -> tuple[Round, dict[str, Any]]:
    """Returns a round that masks `batches` batches; units are rows."""
    work = StepWork(**settings["work"])
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = Path(folder) / "vocab.txt"
        size = work.model.vocabulary_size
        vocabulary.write_text("\n".join(_SPECIAL.get(token_id, f"w{token_id}") for token_id in range(size)))
        tokenizer = transformers.BertTokenizerFast(str(vocabulary))
    collate = transformers.DataCollatorForLanguageModeling(
        tokenizer, mlm_probability=work.masking.mask_selection_rate
    )
    rows = [{"input_ids": row.tolist()} for row in token_rows(work, work.batch_size)]

    def batches() -> float:
        for _ in range(settings["batches"]):
            collate(rows)
        return settings["batches"] * work.batch_size

    return batches, {"version": f"transformers {transformers.__version__}, torch {torch.__version__}"}


if __name__ == "__main__":
    serve(prepare)
