"""The comparison of continued pretraining: what contestants start from, what they report, and the table."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mlm_jax.preparation.prepare import EVALUATION_FOLDER, prepare
from mlm_jax.text.tokenizer import Tokenizer
from mlm_jax.use.evaluate import evaluate_model
from scripts.benchmark.adapt import AdaptWork, Outcome, adapt_table, settings_of, write_rows, write_source
from tests.run_small import documents

WORK = AdaptWork(
    "roberta",
    num_layers=2,
    hidden_dim=64,
    vocabulary_size=300,
    sequence_length=32,
    batch_size=8,
    num_steps=3,
    # So small that no weight changes.
    learning_rate=1e-30,
)


def test_ratios_are_taken_within_seeds() -> None:
    """The machine was twice as slow for the second seed."""
    ours = [Outcome(2.0, 400.0, 1.0, 10.0), Outcome(2.2, 200.0, 1.0, 20.0)]
    theirs = [Outcome(2.0, 100.0, 4.0, 20.0), Outcome(2.0, 50.0, 4.0, 40.0)]
    versions = {"mlm_jax": "jax", "Hugging Face": "torch"}
    table = adapt_table(WORK, 9.0, versions, {"mlm_jax": ours, "Hugging Face": theirs})
    assert "loss before 9.000" in table.title
    names = [row[0] for row in table.rows]
    assert names == ["mlm_jax", "Hugging Face", "mlm_jax relative to Hugging Face"]
    assert table.rows[0][2:] == pytest.approx((2.1, 0.1 * 2**0.5, 300.0, 1.0, 15.0))
    assert table.rows[1][3] == 0.0
    assert table.rows[2][2:] == (pytest.approx(1.05), None, 4.0, 0.25, 0.5)


@pytest.mark.peers
@pytest.mark.parametrize("family", ["roberta", "modernbert"])
def test_contestants_continue_one_model_on_the_same_rows(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from scripts.benchmark.ours import adapt as ours
    from scripts.benchmark.peers import hugging_face_adapt as theirs

    work = replace(WORK, family=family)
    (tmp_path / "text.txt").write_text("\n".join(documents()))
    tokenizer = Tokenizer.train(documents(), work.vocabulary_size, kind="byte-bpe")
    prepare([str(tmp_path / "text.txt")], tokenizer, tmp_path / "data", eval_share=0.2)
    write_source(work, tokenizer, tmp_path / family)
    write_rows(work, tmp_path / "data", tmp_path / "rows.npy")
    rows = np.load(tmp_path / "rows.npy")
    assert rows.shape[1] == 32
    evaluation = tmp_path / "data" / EVALUATION_FOLDER

    def loss(model: str | Path) -> float:
        return evaluate_model(model, evaluation, sequence_length=32, packing="packed").mlm_loss

    before = loss(tmp_path / family)
    for contestant in (ours, theirs):
        _, about = contestant.prepare(settings_of(work, tmp_path, seed=0))
        assert about["tokens_per_second"] > 0
        assert 0.01 < about["peak_memory"] < 100
        assert loss(about["trained"]) == pytest.approx(before, abs=1e-5)
