"""Contestant: transformers' Trainer with DataCollatorForLanguageModeling, on the rows of `mlm-jax prepare`."""

import time
from statistics import median
from typing import Any

import numpy as np
import torch
import transformers

from scripts.benchmark.contest import Round, serve
from scripts.benchmark.memory_of_process import peak_memory


class _Clock(transformers.TrainerCallback):
    """Notes the time of every logged step, at which the loss is read, so that the device has finished."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, **values: Any) -> None:
        self.times.append(time.perf_counter())


def prepare(settings: dict[str, Any]) -> tuple[Round, dict[str, Any]]:
    """Trains and saves; reports the median rate without the first fifth of the steps. The round does nothing."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(settings["source"])
    model = transformers.AutoModelForMaskedLM.from_pretrained(settings["source"])
    rows = np.load(settings["rows"]).astype(np.int64)
    real = rows != tokenizer.pad_token_id
    special = np.isin(rows, tokenizer.all_special_ids)
    examples = [
        {"input_ids": ids, "attention_mask": mask, "special_tokens_mask": never}
        for ids, mask, never in zip(rows, real.astype(np.int64), special.astype(np.int64), strict=True)
    ]
    output, clock = f"{settings['output']}-hugging-face", _Clock()
    arguments = transformers.TrainingArguments(
        output_dir=f"{output}-run",
        max_steps=settings["num_steps"],
        per_device_train_batch_size=settings["batch_size"],
        learning_rate=settings["learning_rate"],
        lr_scheduler_type="linear",
        warmup_steps=settings["warmup_steps"],
        weight_decay=settings["weight_decay"],
        # The epsilon and the clipping of our AdamW.
        adam_epsilon=1e-6,
        max_grad_norm=1.0,
        bf16=settings["dtype"] == "bfloat16",
        logging_steps=settings["log_every"],
        save_strategy="no",
        report_to=[],
        seed=settings["seed"],
    )
    trainer = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=examples,
        data_collator=transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15),
        callbacks=[clock],
    )
    trainer.train()
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    # The last line is the summary of the run.
    seconds = np.diff(clock.times[:-1])
    tokens = settings["log_every"] * settings["batch_size"] * float(real.sum(axis=1).mean())
    return float, {
        "version": f"transformers {transformers.__version__}, torch {torch.__version__}",
        "tokens_per_second": tokens / median(seconds[len(seconds) // 5 :]),
        "peak_memory": peak_memory(torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None),
        "trained": output,
    }


if __name__ == "__main__":
    serve(prepare)
