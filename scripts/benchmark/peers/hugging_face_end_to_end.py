"""Contestant: the work of transformers' run_mlm.py in a plain loop, with grouped texts, its collator and PyTorch."""

from itertools import chain
from typing import Any

import torch
import transformers

from scripts.benchmark.contest import Round, serve
from scripts.benchmark.corpus import document_slices
from scripts.benchmark.peers.hugging_face_step import hugging_face_model
from scripts.benchmark.step_work import StepWork


def prepare(settings: dict[str, Any]) -> tuple[Round, dict[str, Any]]:
    """Returns a round whose units are real tokens: consecutive rows are cut from the texts, without padding."""
    work = StepWork(**settings["work"])
    length = work.sequence_length
    tokenizer = transformers.BertTokenizerFast(f"{settings['tokenizer']}/vocab.txt", do_lower_case=True)
    collate = transformers.DataCollatorForLanguageModeling(
        tokenizer, mlm_probability=work.masking.mask_selection_rate
    )
    model = hugging_face_model(work)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
    slices = document_slices(settings["texts"], settings["documents"])

    def epoch() -> float:
        token_ids = list(
            chain.from_iterable(tokenizer(next(slices), return_special_tokens_mask=False)["input_ids"])
        )
        rows = torch.tensor(token_ids[: len(token_ids) // length * length]).view(-1, length)
        whole = len(rows) // work.batch_size * work.batch_size
        loader = torch.utils.data.DataLoader(
            list(rows[:whole]), batch_size=work.batch_size, shuffle=True, collate_fn=collate
        )
        for batch in loader:
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return whole * length

    return epoch, {"version": f"transformers {transformers.__version__}, torch {torch.__version__}"}


if __name__ == "__main__":
    serve(prepare)
