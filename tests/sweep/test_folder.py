"""The folder of a sweep: what may go on in it, how runs ended, and who has a run."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mlm_jax.config import TrainConfig
from mlm_jax.errors import InputError
from mlm_jax.sweep import claims
from mlm_jax.sweep.claims import claimed
from mlm_jax.sweep.folder import begin, check
from mlm_jax.sweep.plan import Sweep
from mlm_jax.sweep.records import Outcome, SweepRecord, read_outcome, write_outcome

BASE = TrainConfig(output_dir="")
SWEEP = Sweep("rates", "rates.py", "What.", {"a": BASE, "b": replace(BASE, num_steps=7)})
OUTCOME = Outcome(
    status="failed", error="no", step=3, seconds=1.5, command="c", machine={"cores": 2}, versions={"jax": "1"}
)


def test_the_folder_says_what_the_sweep_is(tmp_path: Path) -> None:
    begin(tmp_path / "s", SWEEP, 2)
    tree = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert {key: tree[key] for key in ("name", "source", "description", "baseline", "seeds")} == {
        "name": "rates",
        "source": "rates.py",
        "description": "What.",
        "baseline": "a",
        "seeds": [0, 1],
    }
    assert list(tree["trials"]) == ["a", "b"]
    assert tree["trials"]["b"]["num_steps"] == 7
    record = check(tmp_path / "s", SWEEP)
    assert isinstance(record, SweepRecord)
    assert record.seeds == [0, 1]


def test_trials_and_seeds_may_come_and_none_goes(tmp_path: Path) -> None:
    begin(tmp_path / "s", SWEEP, 3)
    more = replace(SWEEP, trials={**SWEEP.trials, "c": replace(BASE, num_steps=9)})
    begin(tmp_path / "s", more, 1)
    tree = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert (list(tree["trials"]), tree["seeds"]) == (["a", "b", "c"], [0, 1, 2])


def test_a_trial_that_was_begun_stays_and_may_not_come_back_as_another(tmp_path: Path) -> None:
    begin(tmp_path / "s", replace(SWEEP, trials={**SWEEP.trials, "c": replace(BASE, num_steps=9)}), 1)
    (tmp_path / "s" / "b").mkdir()
    alone = replace(SWEEP, trials={"a": BASE})
    begin(tmp_path / "s", alone, 1)
    tree = json.loads((tmp_path / "s" / "sweep.json").read_text())
    # Of the third no run was begun.
    assert list(tree["trials"]) == ["a", "b"]
    with pytest.raises(InputError, match=r"trial 'b' was begun in .*/s with num_steps = 7, and has 8 now"):
        begin(tmp_path / "s", replace(SWEEP, trials={"a": BASE, "b": replace(BASE, num_steps=8)}), 1)


def test_what_changes_no_result_may_change(tmp_path: Path) -> None:
    begin(tmp_path / "s", SWEEP, 1)
    kept = replace(BASE, keep_checkpoints=1, log_every=3, compilation_cache_dir=None)
    begin(tmp_path / "s", replace(SWEEP, trials={"a": kept, "b": SWEEP.trials["b"]}), 1)
    assert json.loads((tmp_path / "s" / "sweep.json").read_text())["trials"]["a"]["keep_checkpoints"] == 1


def test_another_process_that_begins_at_the_same_moment_is_no_stranger(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "sweep.json.host-7.partial").write_text("{")
    (tmp_path / "s" / "claim").write_text("")
    begin(tmp_path / "s", SWEEP, 1)
    assert check(tmp_path / "s", SWEEP) is not None


def test_processes_that_begin_together_lose_no_seed_and_no_trial(tmp_path: Path) -> None:
    children = [
        subprocess.Popen([sys.executable, "-c", BEGIN, str(tmp_path / "s"), str(number)])
        for number in (1, 2, 3, 4)
    ]
    assert [child.wait() for child in children] == [0] * 4
    tree = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert tree["seeds"] == [0, 1, 2, 3]


BEGIN = """
import sys
from pathlib import Path
from mlm_jax.config import TrainConfig
from mlm_jax.sweep.folder import begin
from mlm_jax.sweep.plan import Sweep
for _ in range(20):
    begin(Path(sys.argv[1]), Sweep("s", "s.py", "", {"a": TrainConfig(output_dir="")}), int(sys.argv[2]))
"""


def test_a_folder_of_something_else_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    begin(tmp_path / "s", SWEEP, 1)
    before = (tmp_path / "s" / "sweep.json").read_bytes()
    with pytest.raises(InputError, match="holds the sweep 'rates': must be a folder of its own for 'norms'"):
        begin(tmp_path / "s", replace(SWEEP, name="norms"), 1)
    changed = replace(SWEEP, trials={"a": BASE, "b": replace(BASE, num_steps=8)})
    with pytest.raises(
        InputError, match=r"rates.py: trial 'b' was begun in .*/s with num_steps = 7, and has 8 now: must be"
    ):
        begin(tmp_path / "s", changed, 1)
    assert (tmp_path / "s" / "sweep.json").read_bytes() == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("")
    with pytest.raises(InputError, match="other: holds no sweep: must be a new folder"):
        begin(tmp_path / "other", SWEEP, 1)
    (tmp_path / "s" / "sweep.json").write_text("{")
    with pytest.raises(InputError, match=r"sweep.json: not JSON"):
        check(tmp_path / "s", SWEEP)


def test_a_trial_of_settings_that_are_no_more_is_named_with_its_file(tmp_path: Path) -> None:
    begin(tmp_path / "s", SWEEP, 1)
    file = tmp_path / "s" / "sweep.json"
    tree = json.loads(file.read_text())
    tree["trials"]["b"]["masking"]["whole_words"] = True
    file.write_text(json.dumps(tree))
    with pytest.raises(InputError, match=r"sweep\.json: trial 'b': masking\.whole_words: no such setting"):
        check(tmp_path / "s", SWEEP)


def test_an_outcome_is_read_back(tmp_path: Path) -> None:
    assert read_outcome(tmp_path) is None
    write_outcome(tmp_path / "run", OUTCOME)
    assert read_outcome(tmp_path / "run") == OUTCOME
    (tmp_path / "run" / "outcome.json").write_text('{"status": "finished"}')
    with pytest.raises(InputError, match=r"outcome.json: must hold the outcome of a run; delete it"):
        read_outcome(tmp_path / "run")


HOLD = """
import sys
from pathlib import Path
from mlm_jax.sweep.claims import claimed
with claimed(Path(sys.argv[1])) as mine:
    print(mine, flush=True)
    sys.stdin.read()
"""


def test_a_run_is_claimed_by_one_process_until_it_ends_even_if_it_is_killed(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "True\n"
    with claimed(tmp_path / "run") as mine:
        assert not mine
    with claimed(tmp_path / "other") as mine:
        assert mine
    child.kill()
    child.wait()
    for _ in range(2):
        with claimed(tmp_path / "run") as mine:
            assert mine


def test_a_file_system_without_locks_is_told_of_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(claims.fcntl, "flock", refuse)
    number = errno.ENOLCK
    with pytest.warns(
        UserWarning, match=r"has no locks: of several processes each must be given its --index"
    ):
        begin(tmp_path / "s", SWEEP, 1)
    with pytest.warns(UserWarning, match="has no locks"), claimed(tmp_path / "s" / "a") as mine:
        assert mine
    number = errno.EIO
    with pytest.raises(OSError, match="Input/output error"), claimed(tmp_path / "s" / "a"):
        pass
