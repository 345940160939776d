"""Masked rows per second, compared with other libraries, and by masking unit."""

from dataclasses import asdict

from scripts.benchmark.contest import Contestant, compete
from scripts.benchmark.peers import hugging_face, keras_hub
from scripts.benchmark.step_work import StepWork
from scripts.benchmark.table import Table, compare

# 77 of 512 tokens are 15 %.
_WORK = StepWork("bert_base_en_uncased", 512, sequence_length=512, masked=77)
_SHORT_WORK = StepWork("bert_base_en_uncased", 512, sequence_length=128, masked=20)
_OURS = "mlm_jax"
_CONTESTANT = "scripts.benchmark.ours.masking"
_BATCHES = 64


def measure_masking(*, rounds: int, peers: bool) -> list[Table]:
    """Measures masking of 512-token rows in batches of 512; masking units are also compared on 128-token rows.

    Raises:
        RunError: a contestant fails.
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
    return f"{work.masked} of {work.sequence_length} tokens, {work.batch_size} rows per batch"
