"""Memory and time of each rematerialization policy for BERT-large."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from mlm_jax.config import Remat
from mlm_jax.pods.report import StepReport, report_step
from scripts.benchmark.contest import Contestant, compete
from scripts.benchmark.ours.step import step_program
from scripts.benchmark.step_work import StepWork, as_settings, write_batches
from scripts.benchmark.table import Cell, Table

_COMPILED = StepWork("bert_large_en_uncased", 16, sequence_length=512, masked=77, dropout_rate=0.0)
# Few enough rows for two contestants to fit into 24 GiB.
_TIMED = replace(_COMPILED, batch_size=2, steps=1)
_POLICIES: tuple[Remat, ...] = ("none", "dots", "full")


@dataclass(frozen=True)
class _Policy:
    name: str
    report: StepReport
    time: float | None
    """Time of a step relative to the policy "none"."""


def measure_memory(*, rounds: int) -> list[Table]:
    """Reports XLA's memory plan for 16 rows of 512 float32 tokens, and times steps of two rows in turn with "none".

    Raises:
        RunError: a contestant fails.
    """
    policies = [
        _Policy(name, _compiled(name), None if name == "none" else _time(name, rounds)) for name in _POLICIES
    ]
    return [
        Table(
            f"Memory, {_COMPILED.preset}, {_COMPILED.batch_size} × {_COMPILED.sequence_length} tokens, "
            f"{_COMPILED.masked} masked, {_COMPILED.dtype}, no dropout; times of {_TIMED.batch_size} rows",
            (
                *("remat", "parameters and moments, GiB", "activations and work space, GiB", "peak, GiB"),
                *("peak relative to none", "TFLOP/step", "time relative to none"),
            ),
            [_row(policy, policies[0]) for policy in policies],
        )
    ]


def _compiled(remat: Remat) -> StepReport:
    program = step_program(replace(_COMPILED, remat=remat), _COMPILED.masking)
    return report_step(program, program.compiled_train, chip_kind=None, compile_seconds=0.0)


def _time(remat: Remat, rounds: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        batches = Path(folder) / "batches.npz"
        write_batches(_TIMED, batches)
        plain, other = compete(
            [
                Contestant(
                    name, "scripts.benchmark.ours.step", as_settings(replace(_TIMED, remat=name), batches)
                )
                for name in ("none", remat)
            ],
            rounds=rounds,
        )
    return plain.ratio_to(other)


def _row(policy: _Policy, plain: _Policy) -> tuple[Cell, ...]:
    report, gib = policy.report, 2**30
    return (
        policy.name,
        (report.parameter_bytes + report.optimizer_bytes) / gib,
        report.activation_bytes / gib,
        report.peak_bytes / gib,
        report.peak_bytes / plain.report.peak_bytes,
        report.flops / 1e12,
        policy.time,
    )
