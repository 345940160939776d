import errno
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter

from mlm_jax.config.masking import MaskingConfig
from mlm_jax.config.model import BertConfig
from mlm_jax.config.presets import PRESETS
from mlm_jax.masking.masking import example_keys, mask_and_count
from mlm_jax.masking.selection import selectable_positions
from mlm_jax.run.metrics import (
    LossWindow,
    MetricsLog,
    OneBehind,
    ThroughputMeter,
    masking_warnings,
)
from mlm_jax.run.records import read_records
from mlm_jax.step.flops import mfu, train_flops_per_sequence
from mlm_jax.step.train_step import StepMetrics
from tests.run.records_small import EVALUATION_KEYS, STEP_KEYS, evaluation_record, step_record


def tensorboard_events(run: Path) -> list[Event]:
    """Returns all events of all files, oldest file first; records are framed as (length, crc, data, crc)."""
    events = []
    for path in sorted((run / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            events.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return events


def test_lines_have_the_keys_in_order_and_are_readable_immediately(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        log.log_step(step_record(1, loss=0.1 + 0.2))
        log.log_evaluation(evaluation_record(1))
        line = json.loads((tmp_path / "metrics.jsonl").read_text())
        assert list(line) == STEP_KEYS
        assert (line["step"], line["loss"], line["masked_tokens"], line["mfu"]) == (1, 0.1 + 0.2, 7, None)
        evaluation = json.loads((tmp_path / "eval.jsonl").read_text())
        assert list(evaluation) == EVALUATION_KEYS


def test_non_finite_values_are_null(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        log.log_step(step_record(1, loss=math.nan, grad_norm=math.inf))
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert (line["loss"], line["grad_norm"], line["learning_rate"]) == (None, None, 0.5)


def test_tensorboard_has_the_same_scalars(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        log.log_step(step_record(3, loss=1.25, grad_norm=math.nan))
        log.log_evaluation(evaluation_record(3, mlm_loss=1.5))
    scalars = {
        (event.step, value.tag): value.simple_value
        for event in tensorboard_events(tmp_path)
        for value in event.summary.value
    }
    assert {step for step, _ in scalars} == {3}
    tags = {tag for _, tag in scalars}
    assert tags == {*STEP_KEYS, *(f"eval/{key}" for key in EVALUATION_KEYS)} - {
        "step",
        "eval/step",
        "mfu",
        "grad_norm",
    }
    assert (scalars[3, "loss"], scalars[3, "eval/mlm_loss"]) == (1.25, 1.5)


def test_a_perplexity_that_is_finite_only_in_double_precision_is_infinite_in_tensorboard(
    tmp_path: Path,
) -> None:
    with MetricsLog(tmp_path) as log:
        log.log_evaluation(evaluation_record(3, mlm_loss=300.0, perplexity=1e130, mlm_accuracy=-1e130))
    assert json.loads((tmp_path / "eval.jsonl").read_text())["perplexity"] == 1e130
    values = tensorboard_events(tmp_path)[-1].summary.value
    scalars = {value.tag: value.simple_value for value in values}
    names = ("mlm_loss", "perplexity", "mlm_accuracy")
    assert [scalars[f"eval/{name}"] for name in names] == [300.0, math.inf, -math.inf]


def test_event_files_equal_those_of_tensorboardx(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        log.log_step(step_record(1))
    [events] = (tmp_path / "tensorboard").iterdir()
    writer = RecordWriter(str(tmp_path / "same"))
    for event in tensorboard_events(tmp_path):
        assert abs(event.wall_time - time.time()) < 60
        writer.write(event.SerializeToString())
    writer.close()
    assert events.read_bytes() == (tmp_path / "same").read_bytes()


def test_lines_follow_in_a_file_that_was_removed_or_replaced(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    with MetricsLog(tmp_path) as log:
        log.log_step(step_record(1))
        # As an editor saves a file.
        (tmp_path / "new").write_bytes(file.read_bytes())
        (tmp_path / "new").rename(file)
        log.log_step(step_record(2))
        assert [record["step"] for record in read_records(file)] == [1, 2]
        file.unlink()
        log.log_step(step_record(3))
        assert [record["step"] for record in read_records(file)] == [3]


def test_resuming_drops_later_records_and_a_torn_line(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        for step in (10, 20, 30):
            log.log_step(step_record(step, loss=step / 7))
            log.log_evaluation(evaluation_record(step))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "ep')
    before = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    with MetricsLog(tmp_path, resume_step=20) as log:
        assert (tmp_path / "metrics.jsonl").read_text() == "".join(before[:2])
        log.log_step(step_record(25))
    assert [record["step"] for record in read_records(tmp_path / "metrics.jsonl")] == [10, 20, 25]
    assert [record["step"] for record in read_records(tmp_path / "eval.jsonl")] == [10, 20]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eval.jsonl", "metrics.jsonl", "tensorboard"]
    assert any(event.session_log.status and event.step == 21 for event in tensorboard_events(tmp_path))


def test_lines_in_the_middle_that_are_not_json_are_told(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step}) for step in range(1, 10)]
    lines[3], lines[7] = "\0" * 40, lines[7][:5]
    file.write_text("\n".join(lines))
    with pytest.warns(UserWarning, match=rf"{file}: damaged: 2 lines are no JSON and are left out: 4, 8$"):
        assert [record["step"] for record in read_records(file)] == [1, 2, 3, 5, 6, 7, 9]


def test_a_new_run_starts_with_empty_files(tmp_path: Path) -> None:
    for _ in range(2):
        with MetricsLog(tmp_path) as log:
            log.log_step(step_record(1))
    assert len(read_records(tmp_path / "metrics.jsonl")) == 1


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from tests.run.records_small import step_record
from mlm_jax.run.metrics import MetricsLog

def no_file_grows_beyond(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
run = Path(sys.argv[1])
"""
A_LINE_DOES_NOT_FIT = """
with MetricsLog(run) as log:
    log.log_step(step_record(1))
    no_file_grows_beyond((run / "metrics.jsonl").stat().st_size + 20)
    try:
        log.log_step(step_record(2))
    except OSError as error:
        print(error.errno)
"""
AN_EVENT_DOES_NOT_FIT = """
with MetricsLog(run) as log:
    log.log_step(step_record(1))
    [events] = (run / "tensorboard").iterdir()
    for room in (20, 0):
        (run / "metrics.jsonl").write_bytes(b"")  # so that the line fits
        no_file_grows_beyond(events.stat().st_size + room)
        try:
            log.log_step(step_record(2))
        except OSError as error:
            print(error.errno, error.filename == str(events))
"""
RECORDS_TO_KEEP_DO_NOT_FIT = """
with MetricsLog(run) as log:
    log.log_step(step_record(1))
no_file_grows_beyond(20)
try:
    MetricsLog(run, resume_step=1)
except OSError as error:
    print(error.errno)
"""


def run_with_full_disk(case: str, run: Path) -> str:
    """Returns the output of a child in which no file can grow beyond a size."""
    child = subprocess.run(
        [sys.executable, "-c", FULL_DISK + case, str(run)],
        env=os.environ
        | {
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path]),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert child.returncode == 0, child.stderr
    return child.stdout


def test_a_line_that_does_not_fit_is_not_written_in_part(tmp_path: Path) -> None:
    assert run_with_full_disk(A_LINE_DOES_NOT_FIT, tmp_path).split() == [str(errno.ENOSPC)]
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1]


def test_an_event_that_does_not_fit_is_an_error_and_not_written_in_part(tmp_path: Path) -> None:
    said = run_with_full_disk(AN_EVENT_DOES_NOT_FIT, tmp_path)
    assert said.splitlines() == [f"{errno.ENOSPC} True", f"{errno.EFBIG} True"]
    assert [event.step for event in tensorboard_events(tmp_path) if event.summary.value] == [1]


def test_records_that_cannot_be_rewritten_are_unchanged(tmp_path: Path) -> None:
    assert run_with_full_disk(RECORDS_TO_KEEP_DO_NOT_FIT, tmp_path).split() == [str(errno.EFBIG)]
    assert [record["step"] for record in read_records(tmp_path / "metrics.jsonl")] == [1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eval.jsonl", "metrics.jsonl", "tensorboard"]


LOG_FOR_EVER = """
import itertools, sys
from pathlib import Path

from tests.run.records_small import step_record
from mlm_jax.run.metrics import MetricsLog

log = MetricsLog(Path(sys.argv[1]))
for step in itertools.count(1):
    log.log_step(step_record(step))
"""


def test_a_killed_process_leaves_only_whole_lines(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", LOG_FOR_EVER, str(tmp_path)],
        env=os.environ
        | {
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path]),
        },
    )
    metrics = tmp_path / "metrics.jsonl"
    while not metrics.exists() or metrics.stat().st_size < 20_000:
        assert child.poll() is None
    child.kill()
    child.wait()
    text = metrics.read_text()
    assert text.endswith("\n")
    assert [json.loads(line)["step"] for line in text.splitlines()] == [*range(1, text.count("\n") + 1)]


def test_one_behind_does_not_wait_for_the_latest_step() -> None:
    """The step takes some tenths of a second and is still running when `push` returns."""

    @jax.jit
    def slow(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, 40, lambda _, y: jnp.tanh(y @ y), x).sum()

    x = jnp.eye(600)
    slow(x).block_until_ready()
    behind = OneBehind()
    with jax.transfer_guard("disallow"):
        first, second = slow(x), slow(x)
        assert behind.push(1, {"loss": first}) is None
        step, metrics = behind.push(2, {"loss": second})
    assert not second.is_ready()
    assert step == 1
    assert isinstance(metrics["loss"], np.ndarray)
    step, metrics = behind.flush()
    assert (step, metrics["loss"]) == (2, np.asarray(first))
    assert behind.flush() is None


def step_metrics(loss: float, weight: float, nonfinite_steps: int = 0) -> StepMetrics:
    others = dict.fromkeys(StepMetrics._fields, np.float32(0))
    return StepMetrics(
        **others
        | {"loss": np.float32(loss), "mlm_accuracy": np.float32(loss / 10)}
        | {"masked_tokens": np.float32(weight), "nonfinite_steps": np.float32(nonfinite_steps)}
    )


def test_a_loss_window_weights_steps_by_tokens_and_omits_skipped_ones() -> None:
    window = LossWindow()
    assert math.isnan(window.mean_loss())
    window.add(step_metrics(math.nan, 5, nonfinite_steps=1))
    # Finite, but its gradient was not.
    window.add(step_metrics(3.0, 5, nonfinite_steps=2))
    assert math.isnan(window.mean_loss())
    # Finite, but without a masked token.
    window.add(step_metrics(0.0, 0))
    assert math.isnan(window.mean_loss())
    assert math.isnan(window.accuracy())
    for loss, weight in ((2.0, 30), (4.0, 10)):
        window.add(step_metrics(loss, weight))
    assert (window.mean_loss(), window.masked_tokens) == (2.5, 40)
    assert window.accuracy() == pytest.approx(0.25)


def test_throughput_excludes_paused_time() -> None:
    now = 100.0
    meter = ThroughputMeter(clock=lambda: now)
    for _ in range(4):
        now += 0.5
        meter.add_step(sequences=8, tokens=1024, real_tokens=900)
    with meter.paused():
        now += 60
    throughput = meter.read()
    assert throughput.step_seconds == pytest.approx(0.5)
    assert throughput.sequences_per_second == pytest.approx(16)
    assert throughput.tokens_per_second == pytest.approx(2048)
    assert throughput.real_tokens_per_second == pytest.approx(1800)
    now += 2
    meter.add_step(sequences=8, tokens=1024, real_tokens=900)
    assert meter.read().step_seconds == pytest.approx(2)
    assert math.isnan(meter.read().tokens_per_second)


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_flops_equal_those_of_the_matrix_products_of_a_model(activation: str) -> None:
    """Compared with XLA's count for a forward pass that consists of these products only."""
    layers, h, f, length, masked, vocabulary = 3, 32, 128, 64, 10, 500
    shapes = [(length, h), *[(h, h)] * 4, (h, f), (h, f), (f, h), (h, vocabulary)]

    def forward(x: jax.Array, *weights: jax.Array) -> jax.Array:
        query, key, value, output, up, gate, down, table = weights
        for _ in range(layers):
            x = (((x @ query) @ (x @ key).T) @ (x @ value)) @ output
            x = ((x @ up) * (x @ gate) if activation == "swiglu" else x @ up) @ down
        return (x[:masked] @ output) @ table

    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    cost = jax.jit(forward).lower(*arguments).compile().cost_analysis()
    model = BertConfig(
        num_layers=layers,
        hidden_dim=h,
        num_heads=1,
        intermediate_dim=f,
        vocabulary_size=vocabulary,
        activation=activation,
    )
    elementwise = layers * length * f if activation == "swiglu" else 0
    found = train_flops_per_sequence(model, length=length, masked=masked)
    assert found == 3 * (cost["flops"] - elementwise)


def test_a_local_layer_takes_the_flops_of_its_window() -> None:
    """The first and the fourth of six layers are global; the others see 9 keys, or the row if that is shorter."""
    model = BertConfig(num_layers=6, hidden_dim=32, num_heads=2)
    local = replace(model, local_attention_window=8, global_attention_every=3)
    for length, seen in ((64, 9), (5, 5)):
        fewer = 3 * 4 * 4 * 32 * length * (length - seen)
        of_global = train_flops_per_sequence(model, length=length, masked=4)
        assert train_flops_per_sequence(local, length=length, masked=4) == of_global - fewer


def test_flops_of_bert_base() -> None:
    """About 6 FLOPs per parameter and token: 85M encoder parameters, and the head at 20 of 128 positions."""
    flops = train_flops_per_sequence(PRESETS["bert_base_en_uncased"], length=128, masked=20)
    assert flops == pytest.approx(6 * 85e6 * 128 + 6 * 24e6 * 20, rel=0.05)


def test_mfu() -> None:
    achieved = {"flops_per_sequence": 2e9, "sequences_per_second": 1000.0, "num_devices": 4}
    assert mfu(**achieved, peak=1e12) == pytest.approx(0.5)
    assert mfu(**achieved, peak=None) is None


def masking_config(selection: str, rate: float, length: int) -> MaskingConfig:
    return MaskingConfig(
        vocabulary_size=100,
        mask_token_id=4,
        mask_selection_rate=rate,
        mask_selection_length=length,
        unselectable_token_ids=(0, 2, 3),
        selection=selection,
    )


def counts(config: MaskingConfig, token_ids: jax.Array, seed: int) -> dict[str, int]:
    """Masks the rows and returns the sums of the counts."""
    sums = _sums(config, token_ids, seed)
    return {"rows": len(token_ids)} | {name: int(value) for name, value in sums.items()}


@partial(jax.jit, static_argnums=0)
def _sums(config: MaskingConfig, token_ids: jax.Array, seed: jax.Array) -> dict[str, jax.Array]:
    rows = len(token_ids)
    keys = example_keys(seed, jnp.zeros(rows, jnp.uint32), jnp.arange(rows, dtype=jnp.uint32))
    masked, wanted = mask_and_count(keys, token_ids, config)
    return {
        "real_tokens": (token_ids != 0).sum(),
        "selectable_tokens": selectable_positions(token_ids, config).sum(),
        "masked_tokens": masked.mask_weights.sum(),
        "clipped_rows": (wanted > config.mask_selection_length).sum(),
    }


def warnings_of(config: MaskingConfig, counted: dict[str, int]) -> dict[str, str]:
    return masking_warnings(config, rate=config.mask_selection_rate, **counted)


def make_rows(rows: int, length: int, longest: int, seed: int) -> jax.Array:
    """Returns rows of [CLS], 1 to `longest` tokens, [SEP] and padding."""
    generator = np.random.default_rng(seed)
    token_ids = np.zeros((rows, length), np.int32)
    for row in token_ids:
        body = generator.integers(1, longest + 1)
        row[: body + 2] = [2, *generator.integers(5, 100, body), 3]
    return jnp.asarray(token_ids)


@pytest.mark.parametrize("selection", ["ceil", "bernoulli", "bert"])
@pytest.mark.parametrize("longest", [3, 62])
def test_real_masks_raise_no_warning(selection: str, longest: int) -> None:
    config = masking_config(selection, 0.15, 40)
    for seed in range(5):
        assert warnings_of(config, counts(config, make_rows(64, 64, longest, seed), seed)) == {}


@pytest.mark.parametrize("quota", ["row", "document"])
@pytest.mark.parametrize("unit", ["whole_word", "span"])
def test_masks_of_words_raise_a_warning_only_at_another_rate(unit: str, quota: str) -> None:
    words = {"continuation_token_ids": tuple(range(70, 100)), "document_end_id": 3}
    config = replace(masking_config("ceil", 0.15, 40), unit=unit, quota=quota, **words)
    token_ids = make_rows(64, 64, 62, 0).at[:, 17].set(3).at[:, 29].set(3)
    realized = counts(config, token_ids, 0)
    assert warnings_of(config, realized) == {}
    # With a schedule, the mean rate counts.
    assert list(masking_warnings(config, rate=0.6, **realized)) == ["rate"]
    assert list(warnings_of(config, realized | {"masked_tokens": 0})) == ["none"]
    assert list(warnings_of(config, realized | {"masked_tokens": 20})) == ["rate"]


def test_the_bert_selection_rule_counts_special_tokens() -> None:
    config = masking_config("bert", 0.15, 40)
    token_ids = jnp.tile(jnp.array([3, 3, 7, 8], jnp.int32), (64, 16))
    assert warnings_of(config, counts(config, token_ids, 0)) == {}


@pytest.mark.parametrize("selection", ["ceil", "bernoulli", "bert"])
def test_masks_of_another_rate_raise_a_warning(selection: str) -> None:
    realized = counts(masking_config(selection, 0.15, 40), make_rows(64, 64, 62, 0), 0)
    for rate in (0.10, 0.20):
        warnings = warnings_of(masking_config(selection, rate, 40), realized)
        assert list(warnings) == ["rate"]
        assert f"mask_selection_rate = {rate}" in warnings["rate"]
        assert "\n" not in warnings["rate"]


def test_clipped_rows_raise_a_warning_beyond_one_percent() -> None:
    config = masking_config("ceil", 0.15, 40)
    healthy = {"real_tokens": 12_800, "selectable_tokens": 12_600, "masked_tokens": 1_920}
    assert warnings_of(config, {"rows": 100, "clipped_rows": 1} | healthy) == {}
    warnings = warnings_of(config, {"rows": 100, "clipped_rows": 2} | healthy)
    assert list(warnings) == ["clipped"]
    assert "mask_selection_length = 40 clips 2.0% of the rows" in warnings["clipped"]


@given(st.integers(0, 3), st.sampled_from(["ceil", "bernoulli", "bert"]))
def test_rows_without_a_masked_token_raise_a_warning(rows: int, selection: str) -> None:
    nothing = dict.fromkeys(("real_tokens", "selectable_tokens", "masked_tokens", "clipped_rows"), 0)
    warnings = warnings_of(masking_config(selection, 0.15, 40), {"rows": rows} | nothing)
    assert list(warnings) == (["none"] if rows else []), "there may be no step since the last check"
