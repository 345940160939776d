"""Records with arbitrary values, for tests and the child processes that they start."""

import dataclasses
from typing import Any

from mlm_jax.run.metrics import EvaluationRecord, StepRecord

STEP_KEYS = [
    *("step", "epoch", "loss", "mlm_accuracy", "masked_tokens", "grad_norm", "learning_rate"),
    *("tokens_per_second", "real_tokens_per_second", "sequences_per_second", "step_seconds", "mfu"),
]
EVALUATION_KEYS = ["step", "epoch", "mlm_loss", "mlm_accuracy", "perplexity", "masked_tokens"]


def step_record(step: int, **values: Any) -> StepRecord:
    record = StepRecord(**dict.fromkeys(STEP_KEYS, 0.5) | {"step": step, "masked_tokens": 7, "mfu": None})
    return dataclasses.replace(record, **values)


def evaluation_record(step: int, **values: Any) -> EvaluationRecord:
    record = EvaluationRecord(**dict.fromkeys(EVALUATION_KEYS, 2.0) | {"step": step, "masked_tokens": 9})
    return dataclasses.replace(record, **values)
