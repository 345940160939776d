"""`benchmark.py masking`: rows masked a second, beside other libraries; whole words and spans beside tokens."""

from dataclasses import asdict

from scripts.benchmark.contest import Contestant, compete
from scripts.benchmark.peers import hugging_face, keras_hub
from scripts.benchmark.step_work import StepWork
from scripts.benchmark.table import Table, compare

# 77 of 512 tokens, as 15 % of them are.
_WORK = StepWork("bert_base_en_uncased", 512, sequence_length=512, masked=77)
_SHORT_WORK = StepWork("bert_base_en_uncased", 512, sequence_length=128, masked=20)
_OURS = "mlm_jax"
_CONTESTANT = "scripts.benchmark.ours.masking"
_BATCHES = 64


def measure_masking(*, rounds: int, peers: bool) -> list[Table]:
    """Rows of 512 tokens, 512 a batch, and as many batches a round as make it a good part of a second or more.

    The units beside one another also in rows of 128.

    Raises:
        RunError: a contestant failed.
    """
    settings = {"work": asdict(_WORK), "batches": _BATCHES}
    contestants = [Contestant(_OURS, _CONTESTANT, settings)]
    if peers:
        contestants += keras_hub("masking", settings | {"eager": False}, "KerasHub in tf.data")
        contestants += keras_hub(
            "masking", settings | {"eager": True, "batches": 4}, "KerasHub, called eagerly"
        )
        contestants += hugging_face("masking", settings | {"batches": 1})
    results = compete(contestants, rounds=rounds)
    return [
        compare(f"Masking, {_size(_WORK)}", "rows", results),
        *(_compare_units(work, rounds) for work in (_SHORT_WORK, _WORK)),
    ]


def _compare_units(work: StepWork, rounds: int) -> Table:
    settings = {"work": asdict(work), "batches": _BATCHES}
    units = {"tokens": "token", "whole words": "whole_word", "spans": "span"}
    contestants = [Contestant(name, _CONTESTANT, settings | {"unit": unit}) for name, unit in units.items()]
    return compare(f"Masking by unit, {_size(work)}", "rows", compete(contestants, rounds=rounds))


def _size(work: StepWork) -> str:
    return f"{work.masked} of {work.sequence_length} tokens, {work.batch_size} rows a batch"
