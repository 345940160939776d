"""Runs from start to end: files, resumption, and errors."""

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import jax
import numpy as np
import pytest
from tqdm import tqdm

from mlm_jax.config import ComputeConfig, DataConfig, MeshConfig, OptimizerConfig, TrainConfig
from mlm_jax.config.batch_sizes import BatchSizes
from mlm_jax.config.presets import PRESETS
from mlm_jax.data.batches import Batch, TrainingBatches
from mlm_jax.data.sources import open_run_data
from mlm_jax.errors import InputError, RunError
from mlm_jax.model import compute
from mlm_jax.parallel.sharding import make_mesh
from mlm_jax.run import host_memory, trainer
from mlm_jax.run.records import read_records
from mlm_jax.run.reporting import Reporter
from mlm_jax.run.trainer import train
from mlm_jax.step.program import Program, build_program
from mlm_jax.store.conversion import convert
from mlm_jax.store.run_folder import read_config
from mlm_jax.text.tokenizer import Tokenizer
from tests.run_small import (
    CACHE_IS_READ_ONLY,
    MODEL,
    arrays_of,
    assert_same_end,
    config_of,
    documents,
    listing,
    prepared,
    run_python,
    run_script,
    tokenizer,
    uninterrupted,
    write_config,
)


def copy_of_run(tmp_path: Path, *, without: tuple[int, ...] = ()) -> Path:
    run = shutil.copytree(uninterrupted(), tmp_path / "run")
    for step in without:
        shutil.rmtree(run / "checkpoints" / str(step))
    return run


def test_a_run_writes_only_its_run_folder() -> None:
    run = uninterrupted()
    assert {path.name for path in run.iterdir()} == {
        *("config.json", "metrics.jsonl", "eval.jsonl"),
        *("tensorboard", "loss.png", "tokenizer", "checkpoints"),
    }
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"30", "35", "40"}
    # With what was chosen in place of automatic settings.
    assert read_config(run) == config_of(run, compute=ComputeConfig(dtype="float32", scan_unroll=1))
    assert Tokenizer.load(run / "tokenizer").fingerprint == tokenizer().fingerprint
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert list((run / "tensorboard").iterdir())


def test_a_finished_run_is_reported_and_not_changed() -> None:
    """Started from its own config.json."""
    run = uninterrupted()
    before = listing(run)
    ended = run_script("train", run / "config.json")
    assert ended.returncode == 0
    assert ended.stderr.endswith(
        f"{run}: already finished, at step 40 of 40; a larger num_steps resumes it\n"
    )
    assert listing(run) == before


@pytest.mark.slow
def test_a_larger_num_steps_resumes_a_finished_run_and_changes_are_reported(tmp_path: Path) -> None:
    run = copy_of_run(tmp_path)
    ended = run_script("train", run / "config.json", "--output-dir", run, "--num-steps", 44, "--log-every", 1)
    assert ended.returncode == 0, ended.stderr
    assert "changed since the last start: num_steps: 40 → 44\n" in ended.stderr
    assert "changed since the last start: log_every: 2 → 1\n" in ended.stderr
    assert "step 41: loss" in ended.stderr
    assert f"{run}: finished 44 steps" in ended.stderr
    steps = [record["step"] for record in read_records(run / "metrics.jsonl")]
    assert steps == [*range(2, 41, 2), 41, 42, 43, 44]
    shutil.rmtree(run / "checkpoints")
    again = run_script("train", run / "config.json", "--output-dir", run, "--num-steps", 4)
    assert f"{run}: has no checkpoint, so the run starts again from step 0\n" in again.stderr


@pytest.mark.slow
def test_a_resumed_run_keeps_the_dtype_it_began_with(
    one_device: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a machine with another kind of device."""
    run = copy_of_run(tmp_path)
    monkeypatch.setattr(compute, "_dtype", lambda device: ("bfloat16", "the default here"))
    train(config_of(run, num_steps=42))
    told = capsys.readouterr().err
    assert "\ncompute: float32 (not bfloat16, the default here), layers in a loop, " in told
    assert "since the last start: compute" not in told
    assert read_config(run).compute.dtype == "float32"
    train(config_of(run, num_steps=43, compute=ComputeConfig(dtype="bfloat16")))
    assert "changed since the last start: compute.dtype: float32 → bfloat16\n" in capsys.readouterr().err
    train(config_of(tmp_path / "new", num_steps=5))
    assert "\ncompute: bfloat16 (the default here), " in capsys.readouterr().err
    assert read_config(tmp_path / "new").compute.dtype == "bfloat16"


@pytest.mark.slow
def test_a_different_batch_size_continues_with_the_next_example(
    one_device: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy_of_run(tmp_path)
    before = config_of(run)
    after = replace(before, batch_size=16, data=replace(before.data, eval_path=None))
    taken: list[Batch] = []
    put = Program.put
    monkeypatch.setattr(Program, "put", lambda self, batch: taken.append(batch) or put(self, batch))
    # Twice, because the second start finds a step whose number times the batch size is not the example's.
    for last in (42, 44):
        train(replace(after, num_steps=last))
    told = capsys.readouterr().err
    rows = open_run_data(before.data).train
    assert "changed since the last start: batch_size: 8 → 16\n" in told
    for step, examples in ((41, 320), (43, 352)):
        epochs = f"{examples / rows.num_rows:.2f} epochs"
        assert f"step {step} begins at example {examples}, {epochs}\n" in told
    follow = [TrainingBatches(rows, BatchSizes(8), before.seed).batch(step) for step in range(40, 48)]
    *fields, words = zip(zip(*taken, strict=True), zip(*follow, strict=True), strict=True)
    assert {*words[0], *words[1]} == {None}
    for now, then in fields:
        np.testing.assert_array_equal(np.concatenate(now), np.concatenate(then))
    (*_, last_record) = read_records(run / "metrics.jsonl")
    assert last_record["epoch"] == 384 / rows.num_rows


def growing(output_dir: Path, **changes: Any) -> TrainConfig:
    """Batches of 4 rows that grow to 16 over 100 rows: 9 steps of 4, 4 of 8, 3 of 12, and 8 of 16."""
    settings = {
        "batch_size": 16,
        "accumulation_steps": 2,
        "initial_batch_size": 4,
        "batch_size_warmup_examples": 100,
        "num_steps": 24,
        "eval_every": 6,
        "log_every": 1,
        "keep_checkpoints": 9,
    }
    return config_of(output_dir, **settings | changes)


def compilations(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Records, for each program compiled from now on, whether the clock of the reporter was paused."""
    paused, compiled = Reporter.paused, []
    compile_lowered, still = jax.stages.Lowered.compile, []

    @contextlib.contextmanager
    def noted(reporter: Reporter) -> Iterator[None]:
        with paused(reporter):
            still.append(True)
            yield
            still.pop()

    def compile_and_note(lowered: jax.stages.Lowered, *arguments: Any) -> jax.stages.Compiled:
        compiled.append(bool(still))
        return compile_lowered(lowered, *arguments)

    monkeypatch.setattr(Reporter, "paused", noted)
    monkeypatch.setattr(jax.stages.Lowered, "compile", compile_and_note)
    return compiled


GROWING = [4] * 9 + [8] * 4 + [12] * 3 + [16] * 8


@pytest.mark.slow
def test_a_growing_batch_size(
    one_device: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that is resumed while the batch grows is identical, bit for bit."""
    taken: list[Batch] = []
    put = Program.put
    monkeypatch.setattr(Program, "put", lambda self, batch: taken.append(batch) or put(self, batch))
    run, compiled = tmp_path / "run", compilations(monkeypatch)
    train(growing(run))
    # The last size before the steps, the others and the evaluation while no time is counted.
    assert compiled == [False, *[True] * 4]
    told = capsys.readouterr().err
    rows = open_run_data(growing(run).data)
    per_evaluation = -(-rows.evaluation.num_rows // 8)
    # An evaluation batch is as large as the last microbatch.
    assert [len(batch.epochs) for batch in taken] == [
        size
        for step, rows_of_step in enumerate(GROWING, 1)
        for size in [rows_of_step, *([8] * per_evaluation if step % 6 == 0 else [])]
    ]
    assert (
        "batch size: 4 rows, growing to 16 at step 17; 4 sizes, each compiled when it is first needed" in told
    )
    for step, size in ((1, 4), (10, 8), (14, 12), (17, 16)):
        assert f"step {step}: {size} rows per step from now on\n" in told
    records = read_records(run / "metrics.jsonl")
    examples = np.cumsum(GROWING)
    assert [record["epoch"] for record in records] == pytest.approx(examples / rows.train.num_rows)
    speeds = [record["sequences_per_second"] * record["step_seconds"] for record in records]
    assert speeds == pytest.approx(GROWING)
    left = (examples[-1] - examples[0]) / records[0]["sequences_per_second"]
    assert f"tokens/s, {tqdm.format_interval(left)} left" in told
    again = shutil.copytree(run, tmp_path / "again")
    for checkpoint in (again / "checkpoints").iterdir():
        if int(checkpoint.name) > 10:
            shutil.rmtree(checkpoint)
    train(growing(again))
    told = capsys.readouterr().err
    assert "step 11: 8 rows per step from now on" in told
    assert "the batch size was different before" not in told
    assert_same_end(again, run)


@pytest.mark.release
def test_a_growing_batch_size_on_eight_devices_equals_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(growing(tmp_path / "eight", mesh=MeshConfig(data=2, fsdp=2, tensor=2)))
    monkeypatch.setattr(trainer, "make_mesh", partial(make_mesh, devices=jax.devices()[:1]))
    train(growing(tmp_path / "one"))
    losses = [
        [record["loss"] for record in read_records(tmp_path / name / "metrics.jsonl")]
        for name in ("eight", "one")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def other(**changes: Any) -> Callable[[TrainConfig], TrainConfig]:
    return lambda config: replace(config, **changes)


def other_data(**changes: Any) -> Callable[[TrainConfig], TrainConfig]:
    return lambda config: replace(config, data=replace(config.data, **changes))


def with_fewer_documents(config: TrainConfig) -> TrainConfig:
    return other_data(path=str(prepared(0, 150)))(config)


def with_another_tokenizer(config: TrainConfig) -> TrainConfig:
    return other_data(path=str(prepared(0, 200, 280)), eval_path=None)(config)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (with_fewer_documents, "data.fingerprint"),
        (with_another_tokenizer, "tokenizer.fingerprint"),
        (other(model=replace(MODEL, num_layers=2)), "model.num_layers: 1 in the checkpoint, 2 now"),
        (other_data(sequence_length=16), "data.sequence_length: 20 in the checkpoint, 16 now"),
        (other_data(packing="document"), 'data.packing: "packed" in the checkpoint, "document" now'),
        (
            other_data(attend_within_documents=True),
            "data.attend_within_documents: false in the checkpoint, true now",
        ),
        (other(seed=1), "seed: 0 in the checkpoint, 1 now"),
        (other(optimizer=OptimizerConfig(freeze=("encoder/*",))), "opt_state."),
    ],
)
def test_a_run_with_other_data_or_another_model_is_not_resumed(
    one_device: None, change: Callable[[TrainConfig], TrainConfig], named: str
) -> None:
    run = uninterrupted()
    before = listing(run)
    with pytest.raises(InputError) as refused:
        train(change(config_of(run)))
    assert named in str(refused.value)
    assert "\n" not in str(refused.value)
    assert listing(run) == before


def test_the_script_prints_a_refusal_as_one_line(tmp_path: Path) -> None:
    run = uninterrupted()
    before = listing(run)
    ended = run_script("train", run / "config.json", "--seed", 1, "--num-steps", 50)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith("error: checkpoint ")
    assert "seed: 0 in the checkpoint, 1 now" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert listing(run) == before


def test_a_damaged_checkpoint_is_reported_and_the_previous_one_used(tmp_path: Path) -> None:
    run = copy_of_run(tmp_path)
    newest = run / "checkpoints" / "40"
    # All of its data files, because it depends on timing which of them are still referenced.
    for file in newest.rglob("d/*"):
        os.truncate(file, file.stat().st_size // 2)
    ended = run_script("train", run / "config.json", "--output-dir", run)
    assert ended.returncode == 0, ended.stderr
    assert f"warning: checkpoint {newest} is damaged: " in ended.stderr
    assert "step 36: loss" in ended.stderr
    assert_same_end(run)


# Writing beyond the limit fails like writing to a full disk, with another message.
WITH_LITTLE_ROOM = """
import resource
import runpy
import sys

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)), resource.RLIM_INFINITY))
runpy.run_path("scripts/train.py", run_name="__main__")
"""


def run_with_little_room(*arguments: object) -> CompletedProcess[str]:
    return run_python(WITH_LITTLE_ROOM, *arguments, variables=CACHE_IS_READ_ONLY)


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_keeps_older_checkpoints(tmp_path: Path) -> None:
    run = copy_of_run(tmp_path, without=(35, 40))
    before = listing(run / "checkpoints")
    ended = run_with_little_room(30_000, run / "config.json", "--output-dir", run)
    assert ended.returncode == 1, ended.stderr
    assert ended.stderr.splitlines()[-1] == (
        f"error: the checkpoint of step 35 could not be written to {run / 'checkpoints'}: File too large; "
        "older checkpoints are intact: 30"
    )
    assert "Traceback" not in ended.stderr
    assert listing(run / "checkpoints") == before
    ended = run_script("train", run / "config.json", "--output-dir", run)
    assert ended.returncode == 0, ended.stderr
    assert_same_end(run)


def test_a_full_disk_at_the_start_of_a_run_is_one_line(tmp_path: Path) -> None:
    ended = run_with_little_room(1000, write_config(config_of(tmp_path / "run")))
    assert ended.returncode == 1, ended.stderr
    file = tmp_path / "run" / "tokenizer" / "tokenizer.json"
    assert ended.stderr.endswith(f"error: {file}: File too large; earlier checkpoints are intact\n")


@pytest.mark.parametrize("folder", ["gs://bucket/cache", "~/cache"])
def test_the_compilation_cache_may_be_a_url(
    one_device: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    told = {}
    monkeypatch.setattr(jax.config, "update", told.__setitem__)
    trainer._use_compilation_cache(folder)
    assert told["jax_compilation_cache_dir"] == (folder if "://" in folder else os.path.expanduser(folder))


COUNT_COMPILATIONS = """
import os, shutil, sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import jax

counts = Counter()
jax.monitoring.register_event_listener(lambda event, **_: counts.update([event]))

from mlm_jax.config.files import load_config
from mlm_jax.run.trainer import train

config = load_config(sys.argv[1])
run = Path(config.output_dir)
train(config)
shutil.rmtree(run / "checkpoints" / "40")
for again in (config, replace(config, output_dir=f"{run}_new")):
    counts.clear()
    jax.clear_caches()
    train(again)
    print(counts["/jax/compilation_cache/cache_hits"], counts["/jax/compilation_cache/cache_misses"])
"""


@pytest.mark.slow
def test_a_second_start_compiles_nothing(tmp_path: Path) -> None:
    """A new run and a resumed one find all their programs in the cache that the first start filled."""
    config = config_of(tmp_path / "run", compilation_cache_dir=str(tmp_path / "compiled"))
    ended = run_python(COUNT_COMPILATIONS, write_config(config))
    assert ended.returncode == 0, ended.stderr
    counted = [list(map(int, line.split())) for line in ended.stdout.splitlines()]
    assert len(counted) == 2
    for hits, misses in counted:
        assert hits >= 2
        assert misses == 0


TIME_FIRST_STEP = """
import sys, time
from dataclasses import replace
from mlm_jax.config.files import load_config
from mlm_jax.config.presets import PRESETS
from mlm_jax.run.trainer import train

class FirstStep(Exception):
    pass

def stop(step):
    print(time.process_time() - started)
    raise FirstStep

config = load_config(sys.argv[1])
started = time.process_time()
try:
    train(config, on_step=stop)
except FirstStep:
    pass
"""


@pytest.mark.release
def test_a_warm_start_takes_its_first_step_within_five_seconds(tmp_path: Path) -> None:
    """In CPU time, which other work on the machine does not lengthen much; BERT-tiny, as in the demo."""
    model = replace(PRESETS["bert_tiny_en_uncased"], vocabulary_size=2108, pooler=False)
    config = config_of(
        tmp_path / "run", model=model, compilation_cache_dir=str(tmp_path / "compiled"), batch_size=32
    )
    path = write_config(config)
    for _ in range(2):
        ended = run_python(TIME_FIRST_STEP, path)
        assert ended.returncode == 0, ended.stderr
        seconds = float(ended.stdout)
    assert seconds < 5


@pytest.mark.slow
def test_a_run_resumes_on_eight_devices_and_on_one_again(tmp_path: Path) -> None:
    run = copy_of_run(tmp_path, without=(35, 40))
    config = config_of(run, mesh=MeshConfig(data=2, fsdp=2, tensor=2))
    ended = run_script("train", write_config(config), devices=8)
    assert ended.returncode == 0, ended.stderr
    assert "step 31: loss" in ended.stderr
    assert "changed since the last start: mesh.fsdp: 1 → 2" in ended.stderr
    assert_close_to_one_device(run)
    shutil.rmtree(run / "checkpoints" / "40")
    ended = run_script("train", write_config(replace(config, mesh=MeshConfig())))
    assert ended.returncode == 0, ended.stderr
    assert "step 36: loss" in ended.stderr
    assert "changed since the last start: mesh.fsdp: 2 → 1" in ended.stderr
    assert_close_to_one_device(run)


def assert_close_to_one_device(run: Path) -> None:
    for log, columns in (
        ("metrics.jsonl", ("step", "loss", "mlm_accuracy", "masked_tokens", "grad_norm")),
        ("eval.jsonl", ("step", "mlm_loss", "mlm_accuracy", "masked_tokens")),
    ):
        actual, expected = read_records(run / log), read_records(uninterrupted() / log)
        assert len(actual) == len(expected)
        for column in columns:
            assert [r[column] for r in actual] == pytest.approx([r[column] for r in expected], abs=1e-4)


def test_the_evaluate_script_agrees_with_the_run() -> None:
    ended = run_script("evaluate", uninterrupted(), "--data", prepared(200, 240))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("\n") == 1
    figures = json.loads(ended.stdout)
    names = ["mlm_loss", "mlm_accuracy", "perplexity", "masked_tokens"]
    assert list(figures)[:4] == names
    assert (figures["sequence_length"], figures["packing"]) == (20, "packed")
    last = read_records(uninterrupted() / "eval.jsonl")[-1]
    assert {name: figures[name] for name in names} == pytest.approx(
        {name: last[name] for name in names}, rel=1e-6
    )


def short_run(output_dir: Path, **changes: Any) -> TrainConfig:
    """Config of three steps, for runs in this process."""
    settings = {"num_steps": 3, "eval_every": 3, "log_every": 1} | changes
    return config_of(output_dir, **{"optimizer": OptimizerConfig(learning_rate=1e-3)} | settings)


@pytest.mark.slow
def test_training_on_lists_of_strings_leaves_the_process_unchanged(
    one_device: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only commands set options of malloc."""
    monkeypatch.setattr(host_memory, "ctypes", None)
    config = short_run(tmp_path / "run", data=DataConfig(sequence_length=20))
    with pytest.raises(InputError, match="tokenizer: must be given with documents"):
        train(config, documents=list(documents()))
    assert not (tmp_path / "run").exists()
    result = train(
        config,
        documents=list(documents()[:100]),
        eval_documents=list(documents()[100:120]),
        tokenizer=tokenizer(),
    )
    assert (result.run_folder, result.step, result.finished) == (tmp_path / "run", 3, True)
    assert [record["step"] for record in read_records(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3]
    assert [record["step"] for record in read_records(tmp_path / "run" / "eval.jsonl")] == [3]


def test_a_run_starts_from_another_one_and_frozen_parameters_stay(one_device: None, tmp_path: Path) -> None:
    optimizer = OptimizerConfig(learning_rate=1e-6, freeze=("encoder/*",))
    config = short_run(tmp_path / "run", init_from=str(uninterrupted()), optimizer=optimizer)
    train(config)
    before, after = arrays_of(uninterrupted(), 40), arrays_of(tmp_path / "run", 3)
    frozen = {name for name in before if name.startswith("params.encoder.")}
    trained = {name for name in before if name.startswith("params.")} - frozen
    assert frozen
    assert trained
    assert {name for name in frozen | trained if before[name] == after[name]} == frozen
    assert not any("mu.encoder" in name for name in after)
    evaluations = [read_records(run / "eval.jsonl")[-1] for run in (uninterrupted(), tmp_path / "run")]
    assert evaluations[1]["mlm_loss"] == pytest.approx(evaluations[0]["mlm_loss"], abs=1e-3)


@pytest.mark.slow
def test_a_run_starts_from_a_converted_model_with_a_padded_vocabulary(
    one_device: None, tmp_path: Path
) -> None:
    convert(uninterrupted(), tmp_path / "converted", "hugging_face")
    ends = {}
    for name, source in (("run", uninterrupted()), ("converted", tmp_path / "converted")):
        config = short_run(tmp_path / f"from_{name}", init_from=str(source))
        train(config)
        ends[name] = arrays_of(tmp_path / f"from_{name}", 3)
    assert ends["run"] == ends["converted"]
    padded = replace(MODEL, vocabulary_multiple=128)
    train(short_run(tmp_path / "padded", init_from=str(tmp_path / "converted"), model=padded))
    losses = [
        read_records(tmp_path / folder / "metrics.jsonl")[-1]["loss"] for folder in ("padded", "from_run")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    shutil.rmtree(tmp_path / "converted")


@pytest.mark.slow
def test_init_from_rejects_a_model_of_another_shape(one_device: None, tmp_path: Path) -> None:
    wider = replace(MODEL, hidden_dim=32)
    with pytest.raises(InputError, match=r"has model.hidden_dim = 16: must be 32") as refused:
        train(short_run(tmp_path / "run", init_from=str(uninterrupted()), model=wider))
    assert "\n" not in str(refused.value)
    other_gelu = replace(MODEL, activation="gelu_tanh")
    with pytest.raises(InputError, match=r"has model.activation = 'gelu': must be 'gelu_tanh'"):
        train(short_run(tmp_path / "run", init_from=str(uninterrupted()), model=other_gelu))
    for setting, value in (("norm_placement", "pre"), ("positions", "rotary"), ("biases", False)):
        other = replace(MODEL, **{setting: value})
        has = f"has model.{setting} = {getattr(MODEL, setting)!r}: must be {value!r}"
        with pytest.raises(InputError, match=has):
            train(short_run(tmp_path / "run", init_from=str(uninterrupted()), model=other))
    with pytest.raises(InputError, match="none: no such folder"):
        train(short_run(tmp_path / "run", init_from=str(tmp_path / "none")))
    assert list(tmp_path.iterdir()) == []


def test_init_from_rejects_a_model_with_another_tokenizer(one_device: None, tmp_path: Path) -> None:
    config = short_run(tmp_path / "run", init_from=str(uninterrupted()))
    with pytest.raises(InputError, match=r"init_from = .*: has the tokenizer .* must be that of the data"):
        train(
            replace(config, data=DataConfig(sequence_length=20)),
            documents=documents()[:50],
            tokenizer=tokenizer(280),
        )


@pytest.mark.parametrize(
    ("path", "given", "message"),
    [
        ("", {"documents": ["a"]}, "tokenizer: must be given with documents"),
        ("", {"eval_documents": ["a"]}, "documents: must be given with"),
        ("", {"tokenizer": tokenizer}, "documents: must be given with"),
        (
            "there",
            {"documents": ["a"], "tokenizer": tokenizer},
            "data.path and data.eval_path: must be empty",
        ),
        ("", {}, "data.path: must name a folder"),
    ],
)
def test_data_are_folders_or_documents(
    tmp_path: Path, path: str, given: dict[str, Any], message: str
) -> None:
    given = {name: value() if callable(value) else value for name, value in given.items()}
    config = replace(short_run(tmp_path / "run"), data=DataConfig(path=path, sequence_length=20))
    with pytest.raises(InputError, match=message):
        train(config, **given)
    assert not (tmp_path / "run").exists()


def test_the_best_state_is_kept_even_between_checkpoints(one_device: None, tmp_path: Path) -> None:
    config = short_run(tmp_path / "run", num_steps=12, eval_every=3, checkpoint_every=100, keep_checkpoints=1)
    # The learning rate rises until the loss does.
    train(replace(config, optimizer=OptimizerConfig(learning_rate=1.0, warmup_steps=12)))
    losses = {record["step"]: record["mlm_loss"] for record in read_records(tmp_path / "run" / "eval.jsonl")}
    kept = {int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()}
    best = min(losses, key=losses.__getitem__)
    assert best < 12
    assert kept == {best, 12}


def test_a_signal_during_compilation_stops_the_run_after_a_step(
    one_device: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build_and_signal(*arguments: Any) -> Program:
        os.kill(os.getpid(), signal.SIGTERM)
        return build_program(*arguments)

    monkeypatch.setattr(trainer, "build_program", build_and_signal)
    result = train(short_run(tmp_path / "run"))
    assert (result.step, result.finished) == (1, False)
    assert (tmp_path / "run" / "checkpoints" / "1").is_dir()


def test_a_signal_after_a_step_was_checked_stops_the_run_after_the_next(
    one_device: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide = trainer._Run._evaluate_and_save

    def decide_and_signal(run: trainer._Run, step: int, *arguments: Any) -> bool:
        stops = decide(run, step, *arguments)
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return stops

    monkeypatch.setattr(trainer._Run, "_evaluate_and_save", decide_and_signal)
    result = train(short_run(tmp_path / "run"))
    assert (result.step, result.finished) == (2, False)
    assert (tmp_path / "run" / "checkpoints" / "2").is_dir()


@pytest.mark.slow
def test_a_diverged_run_draws_its_loss_curve(one_device: None, tmp_path: Path) -> None:
    optimizer = OptimizerConfig(learning_rate=1e16, max_grad_norm=None)
    config = short_run(
        tmp_path / "run", num_steps=60, log_every=1, optimizer=optimizer, max_nonfinite_steps=3
    )
    with pytest.raises(RunError, match="3 consecutive steps had a non-finite loss, gradient or update"):
        train(config)
    assert (tmp_path / "run" / "loss.png").is_file()


def test_an_implicit_transfer_is_an_error(
    one_device: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgets_to_put(program: Program, batch: Batch) -> Batch:
        return batch

    monkeypatch.setattr(Program, "put", forgets_to_put)
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        train(short_run(tmp_path / "run"))


HOST_SHARE = """
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median

import jax.numpy as jnp

from mlm_jax.config.files import load_config
from mlm_jax.run.records import read_records
from mlm_jax.step.program import Program, build_program
from mlm_jax.step.train_step import StepMetrics
from mlm_jax.run.trainer import train

config = load_config(sys.argv[1])


def step_seconds(config):
    train(config)
    return median(record["step_seconds"] for record in read_records(Path(config.output_dir) / "metrics.jsonl"))


whole = step_seconds(config)
# Without waiting for a device, the remaining time is the work of the host.
one, zero = jnp.float32(1), jnp.float32(0)
metrics = StepMetrics(*[one] * len(StepMetrics._fields))._replace(nonfinite_steps=zero, stop_votes=zero)
Program.train = lambda program, state, batch, votes: (state, metrics)
Program.memory_report = lambda program: "none"
print(step_seconds(replace(config, output_dir=config.output_dir + "_host", num_steps=400)), whole)
"""


@pytest.mark.release
def test_the_host_takes_less_than_a_twentieth_of_a_bert_tiny_step(tmp_path: Path) -> None:
    config = config_of(
        tmp_path / "run",
        model=replace(PRESETS["bert_tiny_en_uncased"], pooler=False),
        data=DataConfig(path=str(prepared()), sequence_length=128),
        batch_size=32,
        checkpoint_every=1000,
    )
    ended = run_python(HOST_SHARE, write_config(config), optimised=True)
    assert ended.returncode == 0, ended.stderr
    host, whole = map(float, ended.stdout.split())
    print(f"host {1000 * host:.2f} ms of {1000 * whole:.1f} ms a step: {host / whole:.2%}")
    assert host < 0.05 * whole
