"""Benchmarks on tiny work: contestants in processes of their own, their figures, and what happens when one fails."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mlm_jax.errors import RunError
from mlm_jax.pods.costs import matmul_flops
from mlm_jax.pods.hlo import parse
from scripts.benchmark import memory
from scripts.benchmark.__main__ import MEASUREMENTS, main
from scripts.benchmark.contest import Contestant, Result, compete
from scripts.benchmark.corpus import document_slices, passages
from scripts.benchmark.ours.step import step_program
from scripts.benchmark.step_work import StepWork, read_batches, token_rows, write_batches
from scripts.benchmark.table import Table, compare
from tests.contestants import importable
from tests.run_small import run_module
from tests.tiny import tiny_tokenizer

WORK = StepWork("bert_tiny_en_uncased", 4, sequence_length=16, masked=3)

CONTESTANT = """
import sys, time
from scripts.benchmark.contest import serve
def prepare(settings):
    print("libraries may print")
    calls = []
    def work():
        calls.append(1)
        if len(calls) > settings.get("dies_after", 99):
            sys.exit("out of breath")
        time.sleep(settings["seconds"])
        return 10.0
    return work, {"version": settings["version"]}
serve(prepare)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    return importable(CONTESTANT, tmp_path, monkeypatch)


def test_contestants_are_timed_in_turns(module: str) -> None:
    fast, slow = (
        Contestant(name, module, {"seconds": seconds, "version": f"{name} 1.0"})
        for name, seconds in (("fast", 0.05), ("slow", 0.2))
    )
    results = compete([fast, slow], rounds=3)
    assert [result.about["version"] for result in results] == ["fast 1.0", "slow 1.0"]
    assert [len(result.rates) for result in results] == [3, 3]
    assert 45 < results[1].rate <= 50
    assert 2.5 < results[0].ratio_to(results[1]) < 4.5
    table = compare("a race", "laps", results)
    assert table.rows[0][3] is None
    assert table.rows[1][3] == results[0].ratio_to(results[1])


def test_a_ratio_is_taken_within_rounds() -> None:
    """The machine was five times as slow in two rounds of three; the ratio was the same in each."""
    first, second = Result("first", [100.0, 20.0, 20.0], {}), Result("second", [50.0, 10.0, 10.0], {})
    assert first.ratio_to(second) == 2.0


def test_a_contestant_that_fails_is_named_with_its_last_words(module: str) -> None:
    settings = {"seconds": 0.0, "version": "", "dies_after": 3}
    with pytest.raises(RunError, match="weak: ended with 1: out of breath"):
        compete([Contestant("weak", module, settings)], rounds=5)


def test_everyone_gets_the_same_masked_rows(tmp_path: Path) -> None:
    write_batches(WORK, tmp_path / "batches.npz", batches=2)
    batches = read_batches(str(tmp_path / "batches.npz"), WORK.batch_size)
    first, second, again = (next(batches) for _ in range(3))
    assert first["rows"].shape == first["token_ids"].shape == (4, 16)
    assert not np.array_equal(first["rows"], second["rows"])
    np.testing.assert_array_equal(first["token_ids"], again["token_ids"])
    assert (first["mask_weights"].sum(axis=1) == WORK.masked).all()


def test_rows_are_padded_as_told() -> None:
    half = StepWork("bert_tiny_en_uncased", 4, sequence_length=16, masked=2, real_share=0.5)
    assert ((token_rows(half, 4) != 0).sum(axis=1) == 8).all()
    assert half.real_flops_per_sequence < half.flops_per_sequence


@pytest.mark.parametrize(
    "preset",
    [
        "bert_tiny_en_uncased",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("bert_small_en_uncased", "bert_base_en_uncased")
        ),
    ],
)
def test_the_closed_form_of_the_flops_is_what_is_compiled(preset: str) -> None:
    """To 3 %: the products of a step at the benchmark's shapes, as XLA compiled them."""
    work = StepWork(preset, 4, sequence_length=128, masked=20)
    program = step_program(work, work.masking)
    compiled = matmul_flops(parse(program.compiled_train.as_text() or ""))
    assert compiled == pytest.approx(work.flops_per_sequence * work.batch_size, rel=0.03)


def test_passages_are_the_text() -> None:
    document = " ".join(f"w{number}" for number in range(200))
    cut = passages([document, "short"])
    assert " ".join(cut) == f"{document} short"
    assert len(cut) == 4


def test_slices_go_round(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a\nb\nc\n")
    slices = document_slices([str(tmp_path / "text.txt")], 2)
    assert [next(slices) for _ in range(3)] == [["a", "b"], ["c", "a"], ["b", "c"]]


def test_tables_show_three_digits_and_store_all() -> None:
    table = Table("speed", ("who", "rows/s", "×"), [("we", 12345.678, None), ("they", 0.123456, 1.5)])
    assert table.as_markdown().splitlines()[4:] == ["| we | 12,346 | – |", "| they | 0.123 | 1.5 |"]
    assert table.as_json()["rows"][0] == {"who": "we", "rows/s": 12345.678, "×": None}


@pytest.mark.release
def test_texts_that_share_rows_compute_less_padding(tmp_path: Path) -> None:
    tiny_tokenizer().save(tmp_path / "tokenizer")
    lines = [f"{index % 2}\t{'sea ' * (index % 40)}blue\n" for index in range(200)]
    (tmp_path / "texts.tsv").write_text("label\tsentence\n" + "".join(lines))
    files = ("--texts", tmp_path / "texts.tsv", "--tokenizer", tmp_path / "tokenizer", "--num-texts", 200)
    ended = run_module(
        "scripts.benchmark", "texts", *files, "--rounds", 1, "--json", tmp_path / "figures.json"
    )
    assert ended.returncode == 0, ended.stderr
    (table,) = json.loads((tmp_path / "figures.json").read_text())["tables"]
    assert [row["work"] for row in table["rows"][::2]] == ["features", "predict", "fit"]
    for alone, shared in zip(table["rows"][::2], table["rows"][1::2], strict=True):
        assert alone["real tokens"] < shared["real tokens"] < 1


@pytest.mark.release
@pytest.mark.parametrize("work", [["masking"], ["data"], ["step", "--sizes", "tiny"]])
def test_the_script_measures_and_writes(work: list[str], tmp_path: Path) -> None:
    ended = run_module("scripts.benchmark", *work, "--rounds", 1, "--json", tmp_path / "figures.json")
    assert ended.returncode == 0, ended.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["machine"]["python"] == sys.version.split()[0]
    for table in figures["tables"]:
        assert f"### {table['title']}" in ended.stdout
        assert table["rows"]
        for row in table["rows"]:
            assert all(value > 0 for value in row.values() if isinstance(value, float))


@pytest.mark.release
def test_what_rematerialisation_spares_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_COMPILED", "_TIMED"):
        monkeypatch.setattr(
            memory, name, replace(WORK, batch_size=8, sequence_length=128, masked=20, steps=1)
        )
    (table,) = memory.measure_memory(rounds=1)
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert rows["none"]["time relative to none"] is None
    assert rows["none"]["peak relative to none"] == 1.0
    assert rows["full"]["activations and work space, GiB"] < rows["none"]["activations and work space, GiB"]
    assert rows["full"]["TFLOP/step"] > rows["none"]["TFLOP/step"]
    assert 0.1 < rows["full"]["time relative to none"] < 10


def test_a_wrong_work_is_told_in_one_line() -> None:
    ended = run_module("scripts.benchmark", "steps")
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1, ended.stderr


def test_help_lists_the_measurements(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", "--help"])
    main()
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in MEASUREMENTS)
