"""The GPU benchmark without a GPU: its decisions, and its contestants on a CPU."""

import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from mlm_jax.config.masking import MaskingConfig
from mlm_jax.errors import InputError, RunError
from mlm_jax.step.program import Program
from scripts.benchmark import filling, gpu
from scripts.benchmark.contest import Contestant, Result, compete
from scripts.benchmark.filling import estimated_rows, filled_round, largest_that_fits
from scripts.benchmark.gpu import Card, Entry, gpu_entries, gpu_tables, measure_gpu, one_after_another
from scripts.benchmark.ours import card as ours_card
from scripts.benchmark.ours import gpu_step
from scripts.benchmark.ours.step import step_program
from scripts.benchmark.step_work import MODERNBERT, StepWork, as_settings, write_batches
from tests.contestants import importable
from tests.run_small import run_module

H200 = Card("NVIDIA H200", 127 * 10**9)
WORK = StepWork("bert_tiny_en_uncased", 4, sequence_length=16, masked=3, dtype="bfloat16")
LARGE, BASE = "bert_large_en_uncased", "bert_base_en_uncased"


class Allocated:
    """Something with a reference to itself, as closures and frames have."""

    itself: Any = None


CONTESTANT = """
import time
from scripts.benchmark.contest import serve
def prepare(settings):
    if settings["seconds"] is None:
        error = MemoryError("the card is full,\\nall of it")
        error.add_note("Set VERBOSE=1 for more.")
        raise error
    def work():
        time.sleep(settings["seconds"])
        return 10.0
    return work, {"version": "fake 1.0", "rows": 4}
serve(prepare)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    return importable(CONTESTANT, tmp_path, monkeypatch)


@pytest.fixture
def any_platform() -> Iterator[None]:
    """As on a machine with a GPU, where nothing says yet that jax is to leave it alone."""
    jax.config.update("jax_platforms", None)
    yield
    jax.config.update("jax_platforms", "cpu")


def work_of(preset: str, length: int, masked: int, **changes: Any) -> StepWork:
    return StepWork(preset, 1, sequence_length=length, masked=masked, dtype="bfloat16", **changes)


@pytest.mark.parametrize(
    ("work", "memory", "predicted", "attention_weights", "rows"),
    [
        # Enough for 65,536 tokens.
        (work_of(LARGE, 128, 20), 127e9, 20, False, 512),
        (work_of(LARGE, 512, 77), 127e9, 77, False, 128),
        (work_of(BASE, 512, 77), 127e9, 512, False, 128),
        # 24 layers × 7 bytes × 16 heads × 512² are 0.7 GB a row.
        (work_of(LARGE, 512, 77), 127e9, 77, True, 64),
        # 512 positions × 30,522 logits × 12 bytes are 0.19 GB a row.
        (work_of(BASE, 512, 77), 24e9, 512, False, 32),
        (work_of(BASE, 512, 77), 24e9, 77, False, 64),
        # 5.4 of 8 GB are weights, gradients and moments.
        (work_of(LARGE, 128, 20), 8e9, 20, False, 8),
        (work_of(LARGE, 128, 20), 1e9, 20, False, 1),
        (work_of(MODERNBERT, 8192, 2458), 127e9, 2458, False, 8),
        # 8 of 22 layers are global: 8 × 7 bytes × 12 heads × 8,192² are 45 GB a row.
        (work_of(MODERNBERT, 8192, 2458), 127e9, 2458, True, 1),
    ],
)
def test_rows_that_should_fill_a_card(
    work: StepWork, memory: float, predicted: int, attention_weights: bool, rows: int
) -> None:
    assert estimated_rows(work, int(memory), predicted=predicted, attention_weights=attention_weights) == rows


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "RESOURCE_EXHAUSTED: failed to allocate 1.2GiB",
        "CUDA out of memory. Tried to allocate 2.00 GiB.",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "Failed to load: CUDA_ERROR_OUT_OF_MEMORY",
    ],
)
def test_what_does_not_fit_is_halved(words: str) -> None:
    tried = []

    def attempt(rows: int) -> str:
        tried.append(rows)
        if rows > 16:
            raise RuntimeError(words)
        return f"{rows} rows"

    assert largest_that_fits(64, attempt) == "16 rows"
    assert tried == [64, 32, 16]


@pytest.mark.parametrize(("rows", "words"), [(64, "INTERNAL: no such kernel"), (1, "out of memory")])
def test_what_halving_would_not_help_is_raised(rows: int, words: str) -> None:
    tried = []

    def attempt(rows: int) -> None:
        assert rows > 0
        tried.append(rows)
        raise RuntimeError(words)

    with pytest.raises(RuntimeError, match=words):
        largest_that_fits(rows, attempt)
    assert tried == [rows]


def test_the_attempt_that_did_not_fit_is_gone_before_the_next() -> None:
    """Even where what it allocated is part of a cycle."""
    allocated: list[weakref.ref[Any]] = []

    def attempt(rows: int) -> None:
        assert all(array() is None for array in allocated)
        array = Allocated()
        array.itself = array
        allocated.append(weakref.ref(array))
        if rows > 1:
            raise RuntimeError("out of memory")

    largest_that_fits(4, attempt)
    assert len(allocated) == 3


def test_a_round_is_as_many_steps_as_take_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second step of 4 rows does not fit, as where the moments are allocated after the first."""
    monkeypatch.setattr(filling, "_ROUND_SECONDS", 0.5)
    taken: list[tuple[int, int]] = []

    def begin(work: StepWork) -> filling.Steps:
        def take(steps: int) -> None:
            taken.append((work.batch_size, steps))
            if work.batch_size > 2 and steps > 1:
                raise RuntimeError("out of memory")
            time.sleep(0.05 * steps)

        return take

    work_once, rows = filled_round(WORK, begin)
    assert rows == 2
    assert taken == [(4, 2), (2, 2), (2, 1)]
    units = work_once()
    assert units == 2 * taken[-1][1]
    assert 2 <= taken[-1][1] <= 10


def test_what_has_no_time_left_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """20, 30 and again 20 seconds of 100: the third is the last with as many left as the longest took."""
    clock, given = [1000.0], []

    def fake(contestants: list[Contestant], *, rounds: int, seconds: float) -> list[Result]:
        given.append(seconds)
        clock[0] += contestants[0].settings["seconds"]
        return [Result(contestants[0].name, [1.0] * rounds, {})]

    monkeypatch.setattr(gpu, "compete", fake)
    monkeypatch.setattr(gpu, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    contestants = [Contestant(f"no. {i}", "", {"seconds": s}) for i, s in enumerate((20, 30, 21, 5, 5))]
    outcomes = list(one_after_another(contestants, rounds=2, deadline=1100.0))
    assert [outcome and outcome.name for outcome in outcomes] == ["no. 0", "no. 1", "no. 2", None, None]
    assert given == [100.0, 80.0, 50.0]


def test_a_contestant_that_fails_leaves_the_others_theirs(module: str) -> None:
    contestants = [Contestant(name, module, {"seconds": s}) for name, s in (("weak", None), ("well", 0.01))]
    failed, measured = one_after_another(contestants, rounds=2, deadline=time.monotonic() + 60)
    assert isinstance(failed, RunError)
    # Without the advice that comes after it in the traceback.
    assert str(failed) == "weak: ended with 1: MemoryError: the card is full, all of it"
    assert isinstance(measured, Result)
    assert len(measured.rates) == 2


def test_who_takes_too_long_is_ended(module: str) -> None:
    started = time.monotonic()
    with pytest.raises(RunError, match=r"^slow: ran out of time$"):
        compete([Contestant("slow", module, {"seconds": 60})], rounds=1, seconds=1)
    assert time.monotonic() - started < 20


def fake_peer(work: str, settings: dict[str, Any]) -> list[Contestant]:
    return [Contestant("Hugging Face", f"hugging_face_{work}", settings)]


def test_what_tells_most_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "hugging_face", fake_peer)
    entries = gpu_entries(H200, "folder", with_peers=True)
    order = [
        (entry.work.preset, entry.work.sequence_length, entry.work.dropout_rate, entry.contestant.name)
        for entry in entries
    ]
    without, dropped = "mlm_jax, cuDNN attention", "mlm_jax, cuDNN attention, no dropout on its weights"
    assert order[:12] == [
        *((LARGE, length, 0.1, who) for length in (128, 512) for who in (dropped, "Hugging Face")),
        *((MODERNBERT, length, 0.0, who) for length in (1024, 8192) for who in (without, "Hugging Face")),
        *((LARGE, length, 0.0, who) for length in (128, 512) for who in (without, "Hugging Face")),
    ]
    assert {preset for preset, *_ in order[12:20]} == {BASE}
    assert {preset for preset, *_ in order[20:24]} == {MODERNBERT}
    assert {who for *_, who in order[24:]} == {"mlm_jax, XLA attention"}
    assert len(order) == len(set(order)) == 36
    assert len(gpu_entries(H200, "folder", with_peers=False)) == 24


def test_contestants_are_told_their_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "hugging_face", fake_peer)
    entries = gpu_entries(H200, "folder", with_peers=True)
    for entry in entries:
        settings, work = entry.contestant.settings, entry.work
        assert StepWork(**settings["work"]) == work
        assert settings["batches"] == f"folder/{work.sequence_length}.npz"
        assert work.dtype == "bfloat16"
        assert 2**13 <= work.batch_size * work.sequence_length <= 2**16
        assert work.model.dropout_rate == work.dropout_rate
        by_kernel = "cuDNN" in entry.contestant.name
        assert work.attention == (
            "cudnn" if by_kernel else "xla" if "XLA" in entry.contestant.name else "auto"
        )
        assert work.model.attention_dropout_rate == (0.0 if by_kernel else work.dropout_rate)


def entry_of(name: str, work: StepWork = WORK) -> Entry:
    return Entry("the table", work, Contestant(name, "", {}))


def test_every_contestant_has_a_row() -> None:
    work = work_of(BASE, 128, 20)
    entries = [entry_of(name, work) for name in ("ours", "theirs", "failed", "not begun")]
    ours = Result("ours", [900.0, 1000.0, 1100.0], {"version": "jax 1", "rows": 512})
    theirs = Result("theirs", [400.0, 500.0], {"version": "torch 2", "rows": 256})
    failed = RunError("failed: ended with 1: MemoryError: full")
    (table,) = gpu_tables(entries, [ours, theirs, failed, None], "NVIDIA H200")
    flops = work.flops_per_sequence * 1000.0
    assert table.rows[0] == ("ours", "jax 1", 512, 1000.0, 128_000.0, flops / 1e12, flops / 989e12, None)
    assert table.rows[1][2:4] == (256, 450.0)
    assert table.rows[1][-1] == 1000.0 / 450.0
    assert table.rows[2] == ("failed", "ended with 1: MemoryError: full", *[None] * 6)
    assert table.rows[3] == ("not begun", *[None] * 7)
    assert table.as_markdown().splitlines()[-1] == "| not begun |" + " – |" * 7
    assert table.as_json()["rows"][0]["fraction of the chip's peak"] == flops / 989e12


def test_no_figure_is_made_up() -> None:
    """No share of a peak that is not known, and no ratio to what was not measured."""
    theirs = Result("theirs", [400.0], {"version": "torch 2", "rows": 256})
    (table,) = gpu_tables([entry_of("ours"), entry_of("theirs")], [None, theirs], "NVIDIA GeForce")
    assert table.rows[1][-2:] == (None, None)


def test_a_card_is_asked_for_its_kind_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    device = SimpleNamespace(
        platform="gpu",
        compute_capability="9.0",
        device_kind="NVIDIA H200",
        memory_stats=lambda: {"bytes_limit": 127 * 10**9},
    )
    monkeypatch.setattr(ours_card.jax, "devices", lambda: [device])
    told = ours_card.prepare({})[1]
    assert told == {"obstacle": None, "kind": "NVIDIA H200", "memory_bytes": 127 * 10**9}


def test_without_a_gpu_one_line_says_what_is_missing() -> None:
    ended = run_module("scripts.benchmark", "gpu")
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: gpu: needs an NVIDIA GPU of compute capability 8.0 or later, not cpu; ")
    assert "pip install 'mlm-jax[cuda]'" in line


def test_a_jax_that_does_not_start_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(
        InputError, match=r"^gpu: needs an NVIDIA GPU that jax can use, but jax: ended with 1: "
    ):
        measure_gpu(minutes=1, rounds=1)


@pytest.mark.slow
@pytest.mark.usefixtures("any_platform")
def test_a_tiny_model_is_measured_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of it but the question for the card: cuDNN cannot, and its row says so; XLA is measured."""
    monkeypatch.setattr(gpu, "_card", lambda deadline: Card("cpu", 10**9))
    monkeypatch.setattr(gpu, "_SHAPES", ((WORK.preset, 0.1, (WORK.sequence_length,)),))
    monkeypatch.setattr(gpu, "_MASKED", {WORK.sequence_length: WORK.masked})
    for module in (gpu, filling):
        monkeypatch.setattr(module, "MOST_TOKENS", 4 * WORK.sequence_length)
    (table,) = measure_gpu(minutes=5, rounds=1)
    # The process that asks the others would else hold the card.
    assert jax.config.jax_platforms == "cpu"
    assert table.title == ("bert_tiny_en_uncased, rows of 16 tokens, 3 masked, bfloat16, dropout 0.1, cpu")
    failed, measured = table.rows
    assert "InputError: compute.attention = 'cudnn': needs an NVIDIA GPU" in str(failed[1])
    assert measured[:3] == ("mlm_jax, XLA attention", f"jax {jax.__version__}", 4)
    rate = measured[3]
    assert isinstance(rate, float)
    assert rate > 0
    assert measured[4] == rate * 16
    written = capsys.readouterr().err.splitlines()[-2:]
    assert [line.startswith(f"{table.title}: mlm_jax, ") for line in written] == [True, True]
    assert written[1].endswith(" sequences/s")


@pytest.mark.slow
def test_ours_trains_on_half_the_rows_where_all_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_little_memory(work: StepWork, masking: MaskingConfig) -> Program:
        if work.batch_size > 2:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 byte")
        return step_program(work, masking)

    monkeypatch.setattr(gpu_step, "step_program", with_little_memory)
    monkeypatch.setattr(filling, "_ROUND_SECONDS", 1e-6)
    write_batches(WORK, tmp_path / "batches.npz")
    work_once, about = gpu_step.prepare(as_settings(WORK, tmp_path / "batches.npz"))
    assert about["rows"] == 2
    assert work_once() == 2


@pytest.mark.peers
def test_transformers_is_measured_on_the_cpu(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from scripts.benchmark.peers import hugging_face

    write_batches(WORK, tmp_path / "batches.npz")
    settings = as_settings(WORK, tmp_path / "batches.npz") | {"device": "cpu", "compile": False}
    (result,) = compete(hugging_face("gpu_step", settings), rounds=1)
    assert result.about["rows"] == 4
    assert result.rate > 0
    assert "transformers" in result.about["version"]


@pytest.mark.peers
def test_transformers_gets_no_mask_and_all_it_needs(tmp_path: Path) -> None:
    """A mask would keep SDPA from its flash kernel; the weights stay float32, and ours never starts a backend."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from scripts.benchmark.peers import hugging_face, hugging_face_gpu_step

    write_batches(WORK, tmp_path / "batches.npz")
    seen: list[dict[str, Any]] = []
    make = hugging_face_gpu_step.hugging_face_model

    def watched(work: StepWork, **options: Any) -> Any:
        model = make(work, **options)
        model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
        models.append(model)
        return model

    models: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hugging_face_gpu_step, "hugging_face_model", watched)
        patch.setattr(filling, "_ROUND_SECONDS", 1e-3)
        settings = as_settings(WORK, tmp_path / "batches.npz") | {"device": "cpu", "compile": False}
        work_once, _ = hugging_face_gpu_step.prepare(settings)
    assert work_once() == 4
    assert set(seen[0]) == {"input_ids", "labels"}
    assert (seen[0]["labels"] != -100).sum() == 4 * WORK.masked
    (model,) = models
    assert model.config._attn_implementation == "sdpa"
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    (contestant,) = hugging_face("gpu_step", settings)
    assert contestant.environment["JAX_PLATFORMS"] == "cpu"
