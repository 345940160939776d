"""Our train step, compared with other libraries and with the machine's peak speed."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from scripts.benchmark.contest import Contestant, Result, compete
from scripts.benchmark.peers import hugging_face, keras_hub
from scripts.benchmark.step_work import MODERNBERT, StepWork, as_settings, write_batches
from scripts.benchmark.table import Table

_OURS, _UNROLLED, _ROOF = "mlm_jax", "mlm_jax, layers unrolled", "roof"

# Enough steps per round to be timed, but few enough for all contestants of a round to see the machine in one state.
SIZES = {
    "tiny": StepWork("bert_tiny_en_uncased", 32, steps=4),
    "small": StepWork("bert_small_en_uncased", 32, steps=2),
    "base": StepWork("bert_base_en_uncased", 16, steps=1),
    # As many tokens in long rows and in short ones.
    "modernbert": StepWork(MODERNBERT, 2, sequence_length=1024, masked=307, dropout_rate=0.0, steps=1),
    "modernbert-short": StepWork(MODERNBERT, 16, masked=38, dropout_rate=0.0, steps=1),
}


def measure_steps(works: Sequence[StepWork], *, rounds: int, peers: bool) -> list[Table]:
    """Returns a table for each work; with `peers`, includes all other installed libraries.

    Raises:
        RunError: a contestant fails.
    """
    return [_table(work, _compete(work, rounds, peers)) for work in works]


def _compete(work: StepWork, rounds: int, peers: bool) -> list[Result]:
    with tempfile.TemporaryDirectory() as folder:
        batches = Path(folder) / "batches.npz"
        write_batches(work, batches)
        settings, roof = as_settings(work, batches), {"size": 2048, "products": 8, "dtype": work.dtype}
        contestants = [
            Contestant(_ROOF, "scripts.benchmark.ours.roof", roof),
            Contestant(_OURS, "scripts.benchmark.ours.step", settings),
            Contestant(
                _UNROLLED,
                "scripts.benchmark.ours.step",
                as_settings(replace(work, scan_unroll=work.model.num_layers), batches),
            ),
        ]
        if peers:
            contestants += keras_hub("step", settings) + hugging_face("step", settings)
        return compete(contestants, rounds=rounds)


def _table(work: StepWork, results: list[Result]) -> Table:
    roof, ours, unrolled, *_ = results
    rows = [
        (
            result.name,
            result.about["version"],
            result.rate,
            result.rate * work.sequence_length,
            result.rate * work.sequence_length * work.real_share,
            result.rate * work.flops_per_sequence / 1e9,
            result.ratio_to(roof) * work.flops_per_sequence,
            result.ratio_to(roof) * work.real_flops_per_sequence,
            *(
                (None, None)
                if result in (ours, unrolled)
                else (ours.ratio_to(result), unrolled.ratio_to(result))
            ),
        )
        for result in results
        if result is not roof
    ]
    return Table(
        f"{work.preset}, {work.batch_size} × {work.sequence_length} tokens, {work.masked} masked, {work.dtype}, "
        f"dropout {work.dropout_rate:g}; roof {roof.rate / 1e9:,.0f} GFLOP/s",
        (
            *("library", "version", "sequences/s", "tokens/s", "real tokens/s", "model GFLOP/s"),
            *("fraction of the roof", "the same, real tokens", "mlm_jax speedup", "unrolled speedup"),
        ),
        rows,
    )
