"""A config's step compiled without data: what is reported, and what is found where it does not fit."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import pytest

from mlm_jax.config import ComputeConfig, MeshConfig
from mlm_jax.config.model import BertConfig
from mlm_jax.pods import compile_check
from mlm_jax.pods.compile_check import DoesNotFit, compile_step, smallest_fix, stand_in_masking
from mlm_jax.pods.report import StepReport, describe, row
from mlm_jax.step.chips import CHIPS, GIB, Chip
from mlm_jax.step.flops import train_flops_per_sequence
from tests.run_small import config_of, run_script, run_script_alone, write_config
from tests.scripts.test_scripts import assert_refused
from tests.small import CONFIG, MODEL, without_dropout

TINY = replace(
    CONFIG,
    model=without_dropout(),
    mesh=MeshConfig(data=2, fsdp=4),
    compute=ComputeConfig(dtype="bfloat16"),
)


@pytest.fixture(scope="module")
def report() -> StepReport:
    found = compile_step(TINY, jax.devices(), "NVIDIA H100")
    assert isinstance(found, StepReport)
    return found


def flops_of(model: BertConfig) -> int:
    """Of one row: two sums are products with ones, the gradient of the head's bias, and a mask's 32 counts."""
    sums = 2 * 4 * 256 + 32 * 2 * 24
    return train_flops_per_sequence(model, length=24, masked=4) + sums


def test_gates_and_windows_take_the_flops_that_metrics_counts() -> None:
    model = replace(
        TINY.model,
        activation="geglu",
        positions="rotary",
        norm_placement="pre",
        local_attention_window=8,
        global_attention_every=2,
    )
    found = compile_step(replace(TINY, model=model), jax.devices(), "NVIDIA H100")
    assert isinstance(found, StepReport)
    # In the local layer of two, a block of 8 queries meets 16 keys, of which each query sees 9 at most.
    discarded = 3 * 4 * model.hidden_dim * 24 * (16 - 9)
    assert found.flops * 8 == (flops_of(model) + discarded) * TINY.batch_size
    assert flops_of(model) > flops_of(MODEL)


def test_automatic_settings_are_those_of_the_chip() -> None:
    config = replace(TINY, compute=ComputeConfig())
    simulated, chip = (
        str(compile_check._program(config, jax.devices(), kind).compute) for kind in (None, "NVIDIA H100")
    )
    assert simulated.startswith("float32 (the default on cpu), 2 layers unrolled (the default on cpu), ")
    assert chip.startswith("bfloat16 (not float32, the default on cpu), layers in a loop, ")


def test_a_report_says_what_the_step_is_known_to_take(report: StepReport) -> None:
    assert report.flops * 8 == flops_of(MODEL) * TINY.batch_size
    assert report.optimizer_bytes == pytest.approx(2 * report.parameter_bytes, abs=16)
    assert report.peak_bytes >= report.parameter_bytes + report.optimizer_bytes + report.activation_bytes
    assert report.mesh == {"data": 2, "fsdp": 4, "tensor": 1}
    assert report.seconds["compute"] == report.flops / CHIPS["NVIDIA H100"].bfloat16_flops
    assert report.seconds["network"] is None
    assert report.bottleneck in ("compute", "memory", "links")
    assert report.fits


def test_a_report_is_told_in_lines_in_a_row_and_in_json(report: StepReport) -> None:
    lines = describe(report)
    assert "8 × NVIDIA H100; mesh: data 2, fsdp 4, tensor 1" in lines
    for part in (
        "parameters",
        "optimizer",
        "peak",
        "FLOPs per step",
        "all-gather",
        "all-reduce",
        "bottleneck",
    ):
        assert part in lines
    assert row(report).startswith("| 8 NVIDIA H100 | data 2 × fsdp 4 | 16 | none |")
    as_json = json.loads(json.dumps(report.as_json()))
    assert as_json["collectives"][0].keys() == {"kind", "axes", "count", "bytes", "received_bytes"}
    assert as_json["bottleneck"] == report.bottleneck


def test_the_smallest_change_that_fits_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, compiling each: what refuses, or exceeds the chip, is passed over."""
    tried: list[tuple[Any, ...]] = []

    def compile_step_of(config: Any, devices: Any, chip_kind: Any) -> Any:
        size = (config.compute.remat, config.mesh.fsdp, config.accumulation_steps)
        tried.append(size)
        return DoesNotFit("too much") if size != ("none", 8, 1) else replace(report_of(), peak_bytes=1)

    def report_of() -> StepReport:
        return StepReport(
            **dict.fromkeys(StepReport.__annotations__, 0) | {"memory_bytes": GIB, "collectives": ()}
        )

    monkeypatch.setattr(compile_check, "compile_step", compile_step_of)
    fix = smallest_fix(TINY, jax.devices())
    assert fix is not None
    assert fix.flags == "--mesh.data 1 --mesh.fsdp 8"
    assert tried == [("dots", 4, 1), ("full", 4, 1), ("none", 8, 1)]
    # A state that is too large for the chip is not compiled at all.
    tried.clear()
    assert smallest_fix(TINY, jax.devices(), memory_bytes=1) is None
    assert tried == []


def test_stand_in_masking_has_the_recipe_of_the_config() -> None:
    masking = stand_in_masking(CONFIG)
    assert masking.vocabulary_size == MODEL.vocabulary_size
    assert masking.mask_selection_length == CONFIG.masking.selection_length(CONFIG.data.sequence_length)
    tiny = replace(CONFIG, model=replace(MODEL, vocabulary_size=2))
    assert (
        stand_in_masking(replace(tiny, masking=replace(tiny.masking, random_pool="full"))).mask_token_id == 1
    )


def test_a_chip_too_small_is_an_exit_code_and_a_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlm_jax.commands.compile_check import Arguments, report_misfit

    small = Chip(bfloat16_flops=1e12, memory_bytes=1000, source="a test")
    monkeypatch.setitem(CHIPS, "NVIDIA L4", small)
    found = compile_step(TINY, jax.devices(), "NVIDIA L4")
    assert isinstance(found, StepReport)
    assert not found.fits
    assert report_misfit(Arguments(devices=8, chip="NVIDIA L4"), found, None) == 1
    assert "more chips, or a smaller model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), ("--topology or --devices: must be given",)),
        (("--topology", "v5e:4x4", "--devices", 8), ("only one of them",)),
        (("--devices", 0), ("devices = 0: must be at least 1",)),
        (("--devices", 8, "--num-slices", 2), ("--num-slices: must be given with --topology",)),
        (("--devices", 8, "--chip", "H1000"), ("--chip 'H1000': must be one of", "NVIDIA H100")),
        (("--topology", "v5e:3x3"), ("topology 'v5e:3x3': v5e comes as",)),
        (("--devices", 4, "--mesh.dta", 1), ("--mesh.dta: no such flag; did you mean '--mesh.data'?",)),
    ],
)
def test_compile_check_refuses(tmp_path: Path, flags: tuple[object, ...], said: tuple[str, ...]) -> None:
    assert_refused(run_script("compile_check", write_config(config_of(tmp_path / "run")), *flags), *said)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--devices", 8, "--mesh.data", 3), ("data 3 × fsdp 1 × tensor 1 is 3 devices: must be the 8",)),
        (("--devices", 4, "--mesh.data", 1, "--mesh.tensor", 4), ("mesh.tensor = 4", "heads dimension, 2")),
    ],
)
def test_compile_check_refuses_a_mesh(
    tmp_path: Path, flags: tuple[object, ...], said: tuple[str, ...]
) -> None:
    """In a process of its own, because simulated devices are made before jax starts."""
    ended = run_script_alone("compile_check", write_config(config_of(tmp_path / "run")), *flags)
    assert_refused(ended, *said)


@pytest.mark.slow
def test_compile_check_prints_json_alone(tmp_path: Path) -> None:
    config = write_config(config_of(tmp_path / "run"))
    ended = run_script_alone("compile_check", config, "--devices", 2, "--mesh.data", 2, "--json")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["mesh"] == {"data": 2, "fsdp": 1, "tensor": 1}
