"""`benchmark.py masking`: rows masked a second, beside other libraries, and what of a training step it takes."""

from dataclasses import asdict

from mlm_jax.benchmark.contest import Contestant, compete
from mlm_jax.benchmark.peers import hugging_face, keras_hub
from mlm_jax.benchmark.step_work import StepWork
from mlm_jax.benchmark.table import Table, compare

# 77 of 512 tokens, as 15 % of them are.
_WORK = StepWork("bert_base_en_uncased", 512, sequence_length=512, masked=77)
_OURS = "mlm_jax"


def measure_masking(*, rounds: int, peers: bool) -> list[Table]:
    """Rows of 512 tokens, 512 a batch, and as many batches a round as make it a good part of a second or more.

    Raises:
        RunError: a contestant failed.
    """
    settings = {"work": asdict(_WORK), "batches": 64}
    contestants = [Contestant(_OURS, "mlm_jax.benchmark.ours.masking", settings)]
    if peers:
        contestants += keras_hub("masking", settings | {"eager": False}, "KerasHub in tf.data")
        contestants += keras_hub(
            "masking", settings | {"eager": True, "batches": 4}, "KerasHub, called eagerly"
        )
        contestants += hugging_face("masking", settings | {"batches": 1})
    results = compete(contestants, rounds=rounds)
    return [
        compare(
            f"Masking, {_WORK.masked} of {_WORK.sequence_length} tokens, {_WORK.batch_size} rows a batch",
            "rows",
            results,
        )
    ]
