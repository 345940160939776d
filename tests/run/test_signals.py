"""Killed, stopped and resumed runs end like a run that was never interrupted."""

import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mlm_jax.run.signals import StopRequest
from tests.run_small import (
    assert_same_end,
    config_of,
    run_script,
    start_script,
    wait_for_a_step,
    write_config,
)


def checkpoint_being_written(new: set[str]) -> bool:
    return any(".orbax-checkpoint-tmp" in name for name in new)


def checkpoint_just_finished(new: set[str]) -> bool:
    return any(name.isdecimal() for name in new)


def some_time_later(new: set[str]) -> bool:
    time.sleep(random.uniform(0.0, 0.6))
    return True


def kill_when(config: Path, checkpoints: Path, moment: Callable[[set[str]], bool]) -> None:
    """Trains, and kills the process once `moment` is true of the new entries of the checkpoint folder."""
    before = names_in(checkpoints)
    child = start_script("train", config)
    wait_for_a_step(child)
    deadline = time.monotonic() + 30
    while not moment(names_in(checkpoints) - before) and time.monotonic() < deadline:
        pass
    child.kill()
    child.communicate()
    assert child.returncode == -signal.SIGKILL


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


@pytest.mark.slow
def test_a_run_killed_repeatedly_ends_like_an_uninterrupted_one(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = write_config(config_of(run))
    for moment in (checkpoint_being_written, checkpoint_just_finished, some_time_later, some_time_later):
        kill_when(config, run / "checkpoints", moment)
    ended = run_script("train", config)
    assert ended.returncode == 0, ended.stderr
    assert_same_end(run)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)])
def test_a_run_stopped_by_a_signal_is_saved_and_resumes_bit_for_bit(
    default_signals: None, tmp_path: Path, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    config = write_config(config_of(run))
    child = start_script("train", config)
    wait_for_a_step(child)
    child.send_signal(number)
    _, told = child.communicate(timeout=60)
    assert child.returncode == 75, told
    stopped = re.search(
        rf"stopped by {number.name} at step (\d+), saved; rerun the same command to resume", told
    )
    assert stopped, told
    assert 1 <= int(stopped[1]) < 40
    assert (run / "checkpoints" / stopped[1]).is_dir()
    ended = run_script("train", config)
    assert ended.returncode == 0, ended.stderr
    assert f"step {int(stopped[1]) + 1}: loss" in ended.stderr
    assert "step 1: loss" not in ended.stderr
    assert_same_end(run)


def test_the_second_ctrl_c_has_its_usual_effect(default_signals: None) -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        assert stop.name is None
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.name == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"])
def test_a_repeated_signal_does_not_end_the_process_while_it_saves(default_signals: None, name: str) -> None:
    """Schedulers and closing terminals send several."""
    with StopRequest() as stop:
        for number in (signal.Signals[name], signal.Signals[name], signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
            assert stop.name == name
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_restored(default_signals: None) -> None:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    with StopRequest():
        assert all(signal.getsignal(n) is not handler for n, handler in zip(numbers, before, strict=True))
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_hangup_that_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.name is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_does_nothing_outside_the_main_thread() -> None:
    names: list[str | None] = ["unset"]

    def enter() -> None:
        with StopRequest() as stop:
            names[0] = stop.name

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert names == [None]
