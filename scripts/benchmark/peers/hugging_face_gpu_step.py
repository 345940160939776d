"""Contestant: the fastest PyTorch training of transformers' masked LM on one GPU, on full batches.

float32 weights under autocast, fused AdamW, and torch.compile if `compile`. Attention is the library's default, SDPA,
or, with local layers, flash attention where it is installed, because SDPA computes all of a row. The rows have no
padding, so there is no attention mask, with which SDPA could not use its flash kernel. The head predicts every
position, as the library does.
"""

from itertools import cycle, islice
from typing import Any

import torch
import transformers

from scripts.benchmark.contest import Round, Steps, serve
from scripts.benchmark.filling import filled_round
from scripts.benchmark.peers.hugging_face_step import hugging_face_batch, hugging_face_model
from scripts.benchmark.step_work import BATCHES, StepWork, read_batches


def prepare(settings: dict[str, Any]) -> tuple[Round, dict[str, Any]]:
    """Returns a round whose units are sequences; reports the number of `rows` per batch."""
    device, is_local = (
        settings["device"],
        StepWork(**settings["work"]).model.local_attention_window is not None,
    )
    flash = is_local and transformers.utils.is_flash_attn_2_available()
    attention = "flash_attention_2" if flash else "sdpa"
    torch.set_float32_matmul_precision("high")

    def begin(work: StepWork) -> Steps:
        model = hugging_face_model(work, attn_implementation=attention).to(device)
        # Never dynamic, because a halved batch has a new shape.
        forward = torch.compile(model, dynamic=False) if settings["compile"] else model
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
        stored = islice(read_batches(settings["batches"], work.batch_size), BATCHES)
        batches = cycle(
            [_on(device, hugging_face_batch(batch, work.masking.padding_token_id)) for batch in stored]
        )

        def take(steps: int) -> None:
            for batch in islice(batches, steps):
                with torch.autocast(device, getattr(torch, work.dtype)):
                    loss = forward(**batch).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            torch.get_device_module(device).synchronize()

        return take

    work_once, rows = filled_round(StepWork(**settings["work"]), begin)
    version = f"transformers {transformers.__version__}, torch {torch.__version__}, {attention}"
    return work_once, {"version": version, "rows": rows}


def _on(device: str, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: values.to(device) for name, values in batch.items() if name != "attention_mask"}


if __name__ == "__main__":
    serve(prepare)
