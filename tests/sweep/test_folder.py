"""The folder of a sweep: changes between starts, and outcomes of runs."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mlm_jax.config import DataConfig, TrainConfig
from mlm_jax.config.masking import MaskingRecipe
from mlm_jax.errors import InputError
from mlm_jax.sweep import folder as folders
from mlm_jax.sweep.plan import Sweep
from mlm_jax.sweep.records import Outcome, SweepRecord, read_outcome, write_outcome

BASE = TrainConfig(output_dir="", data=DataConfig(path="train", eval_path="valid"))
SWEEP = Sweep("rates", "rates.py", "What.", {"a": BASE, "b": replace(BASE, num_steps=7)})
DATA = {"training": "1f", "evaluation": "2e"}
OUTCOME = Outcome(
    status="failed", error="no", step=3, seconds=1.5, command="c", machine={"cores": 2}, versions={"jax": "1"}
)


def begin(folder: Path, sweep: Sweep, num_seeds: int, **changes: str) -> None:
    folders.begin(folder, sweep, num_seeds, dict.fromkeys(sweep.trials, DATA | changes))


def check(folder: Path, sweep: Sweep, **changes: str) -> SweepRecord | None:
    return folders.check(folder, sweep, dict.fromkeys(sweep.trials, DATA | changes))


def test_the_folder_describes_the_sweep(tmp_path: Path) -> None:
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
    assert tree["data"] == {"a": DATA, "b": DATA}
    record = check(tmp_path / "s", SWEEP)
    assert record is not None
    # Nothing of its trials was begun.
    assert (record.seeds, record.trials, record.data) == ([0, 1], {}, {})


def test_trials_and_seeds_are_added_and_none_is_removed(tmp_path: Path) -> None:
    begin(tmp_path / "s", SWEEP, 3)
    more = replace(SWEEP, trials={**SWEEP.trials, "c": replace(BASE, num_steps=9)})
    begin(tmp_path / "s", more, 1)
    tree = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert (list(tree["trials"]), tree["seeds"]) == (["a", "b", "c"], [0, 1, 2])


def test_a_started_trial_is_kept_and_cannot_return_with_another_config(tmp_path: Path) -> None:
    begin(tmp_path / "s", replace(SWEEP, trials={**SWEEP.trials, "c": replace(BASE, num_steps=9)}), 1)
    (tmp_path / "s" / "b").mkdir()
    alone = replace(SWEEP, trials={"a": BASE})
    begin(tmp_path / "s", alone, 1)
    tree = json.loads((tmp_path / "s" / "sweep.json").read_text())
    # Of the third no run was begun.
    assert list(tree["trials"]) == ["a", "b"]
    with pytest.raises(InputError, match=r"trial 'b' started in .*/s with num_steps = 7 and now has 8"):
        begin(tmp_path / "s", replace(SWEEP, trials={"a": BASE, "b": replace(BASE, num_steps=8)}), 1)


def test_a_trial_without_started_runs_may_change(tmp_path: Path) -> None:
    begin(tmp_path / "s", SWEEP, 1)
    begin(tmp_path / "s", replace(SWEEP, trials={"a": BASE, "b": replace(BASE, num_steps=8)}), 1)
    assert json.loads((tmp_path / "s" / "sweep.json").read_text())["trials"]["b"]["num_steps"] == 8


def test_a_removed_trial_must_still_be_comparable(tmp_path: Path) -> None:
    begin(tmp_path / "s", SWEEP, 1)
    (tmp_path / "s" / "b").mkdir()
    always = MaskingRecipe(mask_token_rate=1.0, random_token_rate=0.0)
    other = replace(SWEEP, trials={"c": replace(BASE, eval_masking=always)})
    with pytest.raises(
        InputError,
        match=r"/s: rates\.py: trial 'b' is evaluated with eval_masking\.mask_token_rate = 0\.8: must be",
    ):
        begin(tmp_path / "s", other, 1)


def test_different_data_at_the_same_path_are_rejected(tmp_path: Path) -> None:
    begin(tmp_path / "s", SWEEP, 1)
    for changes in ({"training": "other"}, {"evaluation": "other"}):
        assert check(tmp_path / "s", SWEEP, **changes) is not None
    (tmp_path / "s" / "a").mkdir()
    for kind, now in (("training", "1f"), ("evaluation", "2e")):
        with pytest.raises(
            InputError,
            match=rf"trial 'a' started in .*/s on other {kind} data \(fingerprint {now}, now new",
        ):
            check(tmp_path / "s", SWEEP, **{kind: "new"})
    # Of a trial that is gone, what it was evaluated on.
    alone = replace(SWEEP, trials={"b": SWEEP.trials["b"]})
    assert check(tmp_path / "s", alone, training="new") is not None
    with pytest.raises(InputError, match=r"trial 'a' started in .*/s on other evaluation data"):
        check(tmp_path / "s", alone, evaluation="new")


def test_settings_that_do_not_affect_results_may_change(tmp_path: Path) -> None:
    begin(tmp_path / "s", SWEEP, 1)
    (tmp_path / "s" / "a").mkdir()
    kept = replace(BASE, keep_checkpoints=1, log_every=3, compilation_cache_dir=None)
    begin(tmp_path / "s", replace(SWEEP, trials={"a": kept, "b": SWEEP.trials["b"]}), 1)
    assert json.loads((tmp_path / "s" / "sweep.json").read_text())["trials"]["a"]["keep_checkpoints"] == 1


def test_another_process_that_starts_the_sweep_is_not_foreign(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "sweep.json.host-7.partial").write_text("{")
    (tmp_path / "s" / "lock").write_text("")
    begin(tmp_path / "s", SWEEP, 1)
    assert check(tmp_path / "s", SWEEP) is not None


def test_files_that_another_process_writes_meanwhile_are_not_foreign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = folders.read_sweep_record

    def read_and_let_another_begin(folder: Path) -> SweepRecord | None:
        found = read(folder)
        monkeypatch.setattr(folders, "read_sweep_record", read)
        begin(folder, SWEEP, 1)
        (folder / "a").mkdir()
        return found

    monkeypatch.setattr(folders, "read_sweep_record", read_and_let_another_begin)
    assert check(tmp_path / "s", SWEEP) is None
    assert check(tmp_path / "s", SWEEP) is not None


def test_processes_that_start_together_lose_no_seed_or_trial(tmp_path: Path) -> None:
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
from mlm_jax.config import DataConfig, TrainConfig
from mlm_jax.sweep.folder import begin
from mlm_jax.sweep.plan import Sweep
sweep = Sweep("s", "s.py", "", {"a": TrainConfig(data=DataConfig(path="a", eval_path="b"))})
for _ in range(20):
    begin(Path(sys.argv[1]), sweep, int(sys.argv[2]), {"a": {"training": "1", "evaluation": "2"}})
"""


def test_a_folder_with_other_content_is_rejected_and_not_changed(tmp_path: Path) -> None:
    begin(tmp_path / "s", SWEEP, 1)
    for trial in "ab":
        (tmp_path / "s" / trial).mkdir()
    before = (tmp_path / "s" / "sweep.json").read_bytes()
    with pytest.raises(
        InputError, match="contains the sweep 'rates': the sweep 'norms' must have its own folder"
    ):
        begin(tmp_path / "s", replace(SWEEP, name="norms"), 1)
    changed = replace(SWEEP, trials={"a": BASE, "b": replace(BASE, num_steps=8)})
    with pytest.raises(
        InputError, match=r"rates.py: trial 'b' started in .*/s with num_steps = 7 and now has 8: must have"
    ):
        begin(tmp_path / "s", changed, 1)
    assert (tmp_path / "s" / "sweep.json").read_bytes() == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("")
    with pytest.raises(InputError, match="other: contains no sweep: must be a new folder"):
        begin(tmp_path / "other", SWEEP, 1)
    (tmp_path / "s" / "sweep.json").write_text("{")
    with pytest.raises(InputError, match=r"sweep.json: not valid JSON"):
        check(tmp_path / "s", SWEEP)


def test_a_trial_with_removed_settings_is_named_with_its_file(tmp_path: Path) -> None:
    begin(tmp_path / "s", SWEEP, 1)
    file = tmp_path / "s" / "sweep.json"
    (tmp_path / "s" / "b").mkdir()
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
    with pytest.raises(InputError, match=r"outcome.json: must contain the outcome of a run; delete it"):
        read_outcome(tmp_path / "run")
