"""A command survives whatever its streams are connected to, and a Ctrl-C at any time."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlm_jax.commands import cli, process
from mlm_jax.files.atomic import new_folder
from mlm_jax.run.records import read_records
from mlm_jax.run.signals import StopRequest
from mlm_jax.text.tokenizer import Tokenizer
from tests.run_small import CACHE_IS_READ_ONLY, ROOT, config_of, environment, write_config


def shell(command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command],
        cwd=ROOT,
        env=environment() | CACHE_IS_READ_ONLY | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.slow
@pytest.mark.parametrize("streams", ["2>&- <&- >&-", "2>&1 >/dev/null | head -1; exit ${PIPESTATUS[0]}"])
def test_a_run_needs_no_reader_of_its_messages(tmp_path: Path, streams: str) -> None:
    config = write_config(config_of(tmp_path / "run", num_steps=6, eval_every=6, checkpoint_every=3))
    ended = shell(f"{sys.executable} -m mlm_jax train {config} {streams}")
    assert ended.returncode == 0, ended
    assert [record["step"] for record in read_records(tmp_path / "run" / "metrics.jsonl")] == [2, 4, 6]
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"3", "6"}


def test_messages_are_escaped_on_terminals_that_lack_their_characters(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the tower\n" * 20)
    python = f"{sys.executable} -m mlm_jax"
    variables = {"PYTHONIOENCODING": "ascii"}
    made = shell(
        f"{python} tokenizer --input {tmp_path}/a.txt --output {tmp_path}/dü --vocab-size 40", **variables
    )
    assert (made.returncode, made.stderr) == (0, "")
    assert made.stdout.startswith(f"{tmp_path}/d\\xfc: ")
    # Help has an ellipsis in every line of usage.
    assert shell(f"{python} train --help", **variables).returncode == 0
    refused = shell(f"{python} merge {tmp_path}/dé", **variables)
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"error: {tmp_path}/d\\xe9: no parts here")


def test_texts_on_the_command_line_are_utf8_in_ascii_locales(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the tower\n" * 20)
    command = f"tokenizer --input {tmp_path}/a.txt --output {tmp_path}/t --vocab-size 40 --user-token '[É]'"
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    made = shell(f"{sys.executable} -m mlm_jax {command}", **ascii_only)
    assert (made.returncode, made.stderr) == (0, "")
    assert Tokenizer.load(tmp_path / "t").token_to_id("[É]") == 5


def test_an_unwritable_stdout_is_an_error_in_one_line(tmp_path: Path) -> None:
    for streams, message in (("> /dev/full", r"error: .+\n"), ("| true; exit ${PIPESTATUS[0]}", "")):
        ended = shell(f"{sys.executable} -m mlm_jax --help {streams}")
        assert re.fullmatch(message, ended.stderr), ended
        assert ended.returncode == 1


def has_mapped(library: str, child: subprocess.Popen[str]) -> bool:
    return library in Path(f"/proc/{child.pid}/maps").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "code"), [("numpy", 130), ("jaxlib", 130), ("lock", 75)])
def test_a_ctrl_c_at_the_start_of_a_run_ends_it(
    default_signals: None, tmp_path: Path, moment: str, code: int
) -> None:
    """While modules are imported, and while the run opens its data or compiles."""
    config = write_config(config_of(tmp_path / "run", num_steps=100_000))
    child = subprocess.Popen(
        [sys.executable, "-m", "mlm_jax", "train", str(config)],
        cwd=ROOT,
        env=environment() | CACHE_IS_READ_ONLY,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "run" / "lock").exists() if moment == "lock" else not has_mapped(moment, child):
        time.sleep(0.002)
        assert child.poll() is None
    child.send_signal(signal.SIGINT)
    _, told = child.communicate(timeout=120)
    assert child.returncode == code, told
    assert told == "interrupted\n" if code == 130 else "stopped by SIGINT at step 1, saved" in told
    assert (tmp_path / "run").exists() == (code == 75)


def test_messages_that_cannot_be_written_are_dropped() -> None:
    with Path("/dev/full").open("wb") as full:
        messages = process._Messages(full.fileno())
        for _ in range(3):
            assert messages.write(b"lost" * 10_000) == 40_000
        messages.flush()


IN_A_CALLBACK = """
import gc, os, signal, time
from mlm_jax.commands import cli

def callback(phase, info):
    gc.callbacks.remove(callback)
    os.kill(os.getpid(), signal.NAME)
    time.sleep(0)

def main():
    gc.callbacks.append(callback)
    gc.collect()
    time.sleep(60)

cli.run(main)
"""
# What an extension module does with a KeyboardInterrupt.
IMPORTED = """
import os, signal
try:
    os.kill(os.getpid(), signal.NAME)
except BaseException:
    raise ImportError
"""
WHILE_IMPORTING = """
from mlm_jax.commands import cli

def main():
    import signals_itself

cli.run(main)
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("code", [IN_A_CALLBACK, WHILE_IMPORTING], ids=["in a callback", "while importing"])
def test_a_signal_is_not_lost(default_signals: None, tmp_path: Path, code: str, name: str) -> None:
    (tmp_path / "signals_itself.py").write_text(IMPORTED.replace("NAME", name))
    ended = subprocess.run(
        [sys.executable, "-c", code.replace("NAME", name)],
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    expected = (130, "interrupted\n") if name == "SIGINT" else (143, "terminated\n")
    assert (ended.returncode, ended.stderr) == expected


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_leaves_no_temporary_folder(
    default_signals: None, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    def write_until_stopped() -> None:
        with new_folder(tmp_path / "model") as partial:
            (partial / "weights").write_bytes(b"half")
            os.kill(os.getpid(), number)
            time.sleep(10)

    with pytest.raises(SystemExit) as ended:
        cli.run(write_until_stopped)
    assert ended.value.code == code
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(number) is signal.SIG_DFL


def test_a_run_takes_over_the_signals_of_its_command(default_signals: None) -> None:
    with process.interruptible(), StopRequest() as request:
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.01)
        assert request.name == "SIGHUP"
