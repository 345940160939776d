"""The comparison of a model with and without new words: the same text for both, and the loss by its definition."""

from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from mlm_jax.errors import InputError
from mlm_jax.extension.change import add_words
from mlm_jax.extension.new_words import extend
from mlm_jax.formats.model_folder import flatten_params
from mlm_jax.store.loading import load_model
from scripts.benchmark.extension import (
    Passage,
    Training,
    Words,
    losses_of,
    measure_extension,
    passages_of,
    with_changed_words,
    with_random_rows,
)
from tests.tiny import encoder_folder, tiny_masked_lm, tiny_tokenizer

KINDS = ["unextended", "extended", "random-rows", "piece-biases"]
DOCUMENTS = ["a sweet applesauce of red dullness and joy " * 20, "the \u0c05 sea is blue"]


def test_all_tokenizers_see_the_same_words() -> None:
    old = tiny_tokenizer()
    new = extend("list", old, ["applesauce", "dullness"])[0].tokenizer
    words = Words([old, new])
    assert not words.is_known("\u0c05")
    found = passages_of(DOCUMENTS, words, 30, 99)
    assert [word for passage in found for word in passage.words] == " ".join(DOCUMENTS).split()
    for passage in found:
        lengths = [len(tokenizer.encode(" ".join(passage.words))) for tokenizer in (old, new)]
        assert lengths[1] < lengths[0] <= 30 or "blue" in passage.words
        assert passage.chosen
        assert "\u0c05" not in [passage.words[i] for i in passage.chosen]
        changed = with_changed_words(passage, old, new)
        assert changed.words == passage.words
        assert {passage.words[i] for i in changed.chosen} <= {"applesauce", "dullness"}
    assert len(passages_of(DOCUMENTS, words, 30, 3)) == 3
    with pytest.raises(InputError, match="none of the documents that are held out has a word to predict"):
        passages_of(["\u0c05"], words, 30, 3)


def test_the_loss_of_a_word_is_that_of_its_pieces_from_left_to_right() -> None:
    lm, passage = tiny_masked_lm(), Passage(["a", "sweet", "applesauce", "and", "dullness"], [2, 4])
    pieces = lm.tokenizer.encode_batch(passage.words)
    row = np.concatenate([[lm.tokenizer.cls_token_id], *pieces, [lm.tokenizer.sep_token_id]])
    starts = 1 + np.cumsum([0, *map(len, pieces)])
    spans = [range(starts[i], starts[i + 1]) for i in passage.chosen]
    assert min(map(len, spans)) > 2

    def loss(position: int, *, masked: list[int]) -> float:
        ids = row.copy()
        ids[masked] = lm.tokenizer.mask_token_id
        batch = {"token_ids": [ids], "mask_positions": [[position]], "labels": [[row[position]]]}
        return lm.evaluate(batch).mlm_loss

    everything = [i for span in spans for i in span]
    in_order = sum(
        loss(i, masked=[j for j in everything if j not in range(span.start, i)])
        for span in spans
        for i in span
    )
    at_once = sum(loss(i, masked=everything) for i in everything)
    num_bytes = len("applesaucedullness")
    # With padding and other rows beside it.
    more = Passage(["joy"], [])
    assert losses_of(lm, [more, passage]) == pytest.approx(
        (in_order / num_bytes, at_once / num_bytes), rel=1e-5
    )


def test_random_rows_are_those_of_new_words_only(tmp_path: Path) -> None:
    model = load_model(encoder_folder(tmp_path / "model"))
    change = add_words("list", model, ["applesauce", "dullness"])
    before, after = flatten_params(change.model.params), flatten_params(with_random_rows(change).params)
    table = "encoder/embeddings/token"
    np.testing.assert_array_equal(after[table][:-2], before[table][:-2])
    assert (after[table][-2:] != before[table][-2:]).all()
    assert after[table][-2:].std() == pytest.approx(model.config.initializer_stddev, rel=0.3)
    np.testing.assert_array_equal(after["head/bias"], before["head/bias"])


@pytest.mark.release
def test_the_comparison_is_a_table(tmp_path: Path) -> None:
    model = encoder_folder(tmp_path / "model")
    text = Path(str(resources.files("mlm_jax.demo").joinpath("landmarks.txt")))
    (table,) = measure_extension(
        str(model),
        [text],
        Training(2, 4, 32, 1e-3),
        num_tokens=20,
        tokenizer=None,
        ablations=True,
        num_passages=8,
        rounds=2,
    )
    assert [row[0] for row in table.rows] == KINDS
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert rows[0]["rows"] == tiny_tokenizer().vocabulary_size == rows[1]["rows"] - 20
    assert rows[1]["tokens per word"] < rows[0]["tokens per word"]
    assert rows[2]["nats per byte in order, before"] != rows[1]["nats per byte in order, before"]
    assert " ± " in str(rows[1]["nats per byte in order, after"])
