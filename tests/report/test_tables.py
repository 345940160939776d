import csv
import io
import json
import re
from pathlib import Path

from mlm_jax.report.results import results_of
from mlm_jax.report.state import read_sweep
from mlm_jax.report.tables import RESULTS_HEADING, markdown, results_csv, results_table, runs_csv
from tests.report.sweeps import LOSSES, write_outcome, write_plan, write_sweep


def rerun(folder: Path, losses: object = LOSSES) -> Path:
    """The same sweep on another day: the same losses, other times, another machine."""
    write_sweep(folder, losses)
    for run in folder.glob("*/seed_*"):
        outcome = json.loads((run / "outcome.json").read_text())
        changes = {
            "seconds": 99.25,
            "command": "python scripts/ablate.py again",
            "machine": {"device": "H200"},
        }
        write_outcome(run, outcome["step"], outcome["error"], **changes)
        metrics = run / "metrics.jsonl"
        lines = [json.loads(line) for line in metrics.read_text().splitlines()]
        for line in lines:
            line["step_seconds"] *= 1 / 7
            for name in ("tokens_per_second", "real_tokens_per_second", "sequences_per_second"):
                line[name] *= 7
            line["mfu"] = 0.4
        metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_the_results_of_a_sweep(tmp_path: Path) -> None:
    losses = LOSSES | {"rate_70": {0: 2.3, 1: None}}
    table = results_table(results_of(read_sweep(write_sweep(tmp_path, losses))))
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert cells[0][:4] == ["trial", "evaluation loss (nats)", "seeds", "difference (nats)"]
    assert cells[2:] == [
        ["`rate_15`", "2.1200 ± 0.0200", "3", "–", "–", "baseline", "–", "60.00%", "8.33", "230 k", "–"],
        [
            *("`rate_30`", "2.0700 ± 0.0265", "3", "−0.050", "−0.075 … −0.025", "0.050 nats lower", "3"),
            *("60.00%", "7.92", "230 k", "`masking.mask_selection_rate = 0.3`"),
        ],
        [
            *("`rate_50`", "2.1167 ± 0.0231", "3", "−0.003", "−0.107 … +0.100"),
            *("no difference seen (−0.107 … +0.100)", "3", "60.00%", "8.30", "230 k"),
            "`masking.mask_selection_rate = 0.5`",
        ],
        [
            *("`rate_70`", "2.3000", "1", "+0.200", "–", "one pair: no interval, no verdict", "1"),
            *("60.00%", "9.97", "230 k", "`optimizer.learning_rate = 0.002`"),
        ],
    ]


def test_a_rerun_gives_the_same_results_to_the_letter(tmp_path: Path) -> None:
    first, again = (read_sweep(write(tmp_path / write.__name__)) for write in (write_sweep, rerun))
    assert results_csv(first) == results_csv(again)

    def results_part(text: str) -> str:
        return text.partition(RESULTS_HEADING)[2].partition("\n## Time")[0]

    before, after = markdown(first, {}), markdown(again, {})
    assert results_part(before) == results_part(after)
    assert len(results_part(before)) > 1000
    # What it took is told, elsewhere.
    assert "| 34 |" in before
    assert "| 99 |" in after
    assert runs_csv(first) != runs_csv(again)


def test_a_line_a_run_with_all_digits(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, {"rate_15": {0: 2.1, 1: None}, "rate_30": {0: 2.0}})
    rows = list(csv.DictReader(io.StringIO(results_csv(read_sweep(folder)))))
    assert [(row["trial"], row["seed"], row["status"], row["step"]) for row in rows] == [
        ("rate_15", "0", "finished", "1000"),
        ("rate_15", "1", "failed", "500"),
        ("rate_30", "0", "finished", "1000"),
        ("rate_30", "1", "not started", "0"),
    ]
    last = json.loads((folder / "rate_15" / "seed_0" / "metrics.jsonl").read_text().splitlines()[-1])
    assert float(rows[0]["training.loss"]) == last["loss"]
    assert float(rows[0]["evaluation.mlm_loss"]) == 2.1
    assert rows[1]["left_out"] == "failed: step 500: 20 steps in a row | had a <loss> of NaN"
    assert (rows[3]["evaluation.mlm_loss"], rows[3]["left_out"]) == ("", "not started")
    assert [row["masking.mask_selection_rate"] for row in rows] == ["0.15", "0.15", "0.3", "0.3"]
    assert not [name for name in rows[0] if "second" in name or "mfu" in name]


def test_what_a_run_took_is_in_a_table_of_its_own(tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(runs_csv(read_sweep(write_sweep(tmp_path))))))
    assert len(rows) == 9
    assert rows[0]["seconds"] == "34.5"
    assert rows[0]["real_tokens"] == "230000"
    assert round(float(rows[0]["real_tokens_per_second"])) == round(230 / 0.03)
    assert (rows[0]["machine.device"], rows[0]["versions.jax"]) == ("cpu", "0.10.2")


def test_the_report_says_how_it_was_made(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, {"rate_15": {0: 2.1, 1: None}, "rate_30": {0: 2.0}})
    write_outcome(folder / "rate_30" / "seed_0", 1000, machine={"device": "TPU v5e", "cores": 2})
    text = markdown(read_sweep(folder), {"losses.png": "Losses"})
    assert text.startswith("# mask_rate\n\nHow many tokens to mask.\n")
    assert "2 of 4 runs finished, 1 failed, 1 not started" in text
    assert "- `rate_15/seed_1`: failed: step 500: 20 steps in a row | had a &lt;loss> of NaN\n" in text
    assert "- `rate_30/seed_1`: not started\n" in text
    assert "![Losses](losses.png)" in text
    assert "- device: `cpu` (2 runs); `TPU v5e` (1 run)\n" in text
    assert "- command: `python scripts/ablate.py configs/ablations/mask_rate.py`\n" in text


def test_a_sweep_of_which_nothing_ran_has_a_report(tmp_path: Path) -> None:
    write_plan(tmp_path, ["rate_15", "rate_30"], [0, 1])
    text = markdown(read_sweep(tmp_path), {})
    assert "0 of 4 runs finished, 4 not started" in text
    assert "| `rate_30` | – | 0 | – | – | no seed in common with the baseline | 0 | – | – | – |" in text
    assert "No evaluation yet." in text


def test_no_name_breaks_the_table(tmp_path: Path) -> None:
    write_plan(tmp_path, ["plain", "a|b\nc"], [0])
    table = results_table(results_of(read_sweep(tmp_path)))
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    assert len(table.splitlines()) == 4
