"""A corpus prepared on Ray is that of a job array, file by file, whatever dies meanwhile."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from mlm_jax.commands import prepare as prepare_command
from mlm_jax.data.verification import verify_shards
from mlm_jax.errors import InputError
from mlm_jax.preparation.division import Part
from mlm_jax.preparation.merge import merge_parts
from mlm_jax.preparation.prepare import prepare
from mlm_jax.preparation.ray_parts import _prepare_part
from mlm_jax.text.tokenizer import Tokenizer
from tests.locks import held_by_another_process

ROOT = Path(__file__).parents[2]
NUM_PARTS = 4
WORDS = ["the", "tower", "stands", "in", "a", "city", "of", "rivers", "and", "bridges", "where", "walk"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "."]
# A shard is flushed to disk several times, so that a part of many takes long enough to be killed.
SETTINGS = {"shard_tokens": 500, "eval_share": 0.1}
# Seconds; long enough for Ray to start on a busy machine.
PATIENCE = 120

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install 'mlm-jax[ray]'")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    rng = np.random.default_rng(0)
    for number in range(8):
        lines = (" ".join(rng.choice(WORDS, rng.integers(1, 30))) for _ in range(1500))
        (folder / f"{number}.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def expected(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Files of a job array."""
    output = tmp_path_factory.mktemp("expected") / "data"
    for index in range(NUM_PARTS):
        tokenizer, part = Tokenizer.load(corpus / "vocab.txt"), Part(index, NUM_PARTS)
        prepare([str(corpus / "*.jsonl")], tokenizer, output, part=part, **SETTINGS)
    merge_parts(output)
    return files_of(output)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def start(corpus: Path, output: Path, inputs: str = "*.jsonl") -> subprocess.Popen[str]:
    """Starts the command in the folder of the corpus, with relative paths."""
    arguments = ["--input", inputs, "--tokenizer", "vocab.txt", "--output", os.path.relpath(output, corpus)]
    for name, value in {**SETTINGS, "num_parts": NUM_PARTS, "engine": "ray"}.items():
        arguments += [f"--{name.replace('_', '-')}", str(value)]
    return subprocess.Popen(
        [sys.executable, "-m", "mlm_jax", "prepare", *arguments],
        cwd=corpus,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def pid_of_a_part(process: subprocess.Popen[str], output: Path, num_shards: int) -> int:
    """Waits until an unfinished part has `num_shards` shards, and returns the process that prepares it."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        for file in output.glob(f"part-*/tokens-{num_shards - 1:05d}.bin"):
            lock = file.parent / "lock"
            if lock.exists() and (lines := lock.read_text().splitlines()):
                return int(json.loads(lines[-1])["pid"])
        time.sleep(0.005)
    raise AssertionError(f"no part was running: {process.communicate()}")


@needs_ray
@pytest.mark.slow
def test_a_killed_worker_changes_nothing(corpus: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    output = tmp_path / "data"
    process = start(corpus, output)
    killed = pid_of_a_part(process, output, num_shards=3)
    assert killed != process.pid
    os.kill(killed, signal.SIGKILL)
    said, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    assert files_of(output) == expected
    verify_shards(output)
    lines = [line for line in said.splitlines() if "documents" in line]
    # Both sides of each part, and of the whole.
    assert len(lines) == 2 * NUM_PARTS + 2, said


@needs_ray
@pytest.mark.slow
def test_the_command_resumes_after_it_was_killed(
    corpus: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    output = tmp_path / "data"
    first = start(corpus, output)
    pid_of_a_part(first, output, num_shards=20)
    first.kill()
    first.wait()
    before = {path: path.stat().st_mtime_ns for path in output.rglob("tokens-*.bin")}
    assert len(before) >= 20
    assert not (output / "manifest.json").exists()
    second = start(corpus, output)
    errors = second.communicate(timeout=PATIENCE)[1]
    assert second.returncode == 0, errors
    assert files_of(output) == expected
    assert {path: path.stat().st_mtime_ns for path in before} == before


@needs_ray
@pytest.mark.slow
def test_a_bad_file_is_one_error(corpus: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    inputs = shutil.copytree(corpus, tmp_path / "corpus")
    good = (inputs / "5.jsonl").read_text()
    (inputs / "5.jsonl").write_text(good + '{"text": ')
    process = start(inputs, tmp_path / "data")
    errors = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 2, errors
    own = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert own == [
        f"error: {inputs / '5.jsonl'}:1501: not valid JSON: {own[0].partition('not valid JSON: ')[2]}"
    ]
    assert "Traceback" not in errors


FAILING = """
import os, sys
from mlm_jax.preparation.ray_parts import prepare_parts
from mlm_jax.errors import InputError, RunError
from mlm_jax.text.tokenizer import Tokenizer

text, output, log = sys.argv[1:]

class Failing(Tokenizer):
    def encode_batch(self, texts):
        with open(log, "a") as file:
            print(self.how, file=file)
        if self.how == "dies":
            os.kill(os.getpid(), 9)
        raise InputError("a document that cannot be read")

for how in ("raises", "dies"):
    tokenizer = Failing.load("vocab.txt")
    tokenizer.how = how
    try:
        list(prepare_parts([text], tokenizer, output, num_parts=1))
    except (InputError, RunError) as error:
        print(f"{type(error).__name__}: {error}")
"""


@needs_ray
@pytest.mark.slow
def test_dead_workers_are_replaced_a_few_times_and_errors_are_not_retried(
    corpus: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    (tmp_path / "a.txt").write_text("the city\n")
    said = subprocess.check_output(
        [sys.executable, "-c", FAILING, str(tmp_path / "a.txt"), "data", str(log)],
        cwd=corpus,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"},
        text=True,
    )
    own = [line for line in said.splitlines() if line.startswith(("InputError", "RunError"))]
    assert own[0] == "InputError: a document that cannot be read"
    assert own[1].startswith("RunError: data/part-00000-of-00001: Ray gave it up: The worker died")
    assert own[1].endswith("; rerun the same command to resume")
    assert log.read_text().split() == ["raises", *["dies"] * 4]


def test_a_task_waits_for_the_previous_process_of_its_part(corpus: Path, tmp_path: Path) -> None:
    part, tokenizer = Part(0, 1), Tokenizer.load(corpus / "vocab.txt")
    (tmp_path / "a.txt").write_text("the city\n")
    task = ([str(tmp_path / "a.txt")], tokenizer, str(tmp_path / "data"), {})
    with ThreadPoolExecutor() as pool:
        with held_by_another_process(tmp_path / "data" / part.folder):
            prepared = pool.submit(_prepare_part, part, task)
            time.sleep(0.5)
            assert not prepared.done()
        assert prepared.result().totals.documents == 1


def test_wrong_flags_and_a_missing_engine_are_named(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    common = ["--input", str(corpus / "0.jsonl"), "--tokenizer", str(corpus / "vocab.txt")]
    common += ["--output", str(tmp_path / "data"), "--engine", "ray"]
    for arguments, message in (
        ([], "--engine: must be given with --num-parts and without --part"),
        (["--num-parts", "3", "--part", "0"], "--engine: must be given with --num-parts and without --part"),
        (["--num-parts", "3"], r"--engine ray: needs Ray: pip install 'mlm-jax\[ray\]'"),
    ):
        with pytest.raises(InputError, match=message):
            prepare_command.main([*common, *arguments], "mlm-jax prepare")
    assert not (tmp_path / "data").exists()
