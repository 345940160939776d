"""MaskedLM: filled masks, features and likelihoods, each compared with the bare model on one row at a time."""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mlm_jax.config.masking import MaskingRecipe
from mlm_jax.config.training_record import TrainingRecord
from mlm_jax.errors import InputError, RunError
from mlm_jax.formats.model_folder import random_model
from mlm_jax.model.bert import abstract_masked_lm
from mlm_jax.model.layers import split_model
from mlm_jax.run.trainer import train
from mlm_jax.text.tokenizer import Tokenizer
from mlm_jax.use.masked_lm import MaskedLM
from tests.run_small import run_python
from tests.tiny import FRUIT, tiny_masked_lm, trained_masked_lm


@pytest.fixture(scope="module")
def model() -> MaskedLM:
    return trained_masked_lm()


def rows_of(model: MaskedLM, texts: list[str]) -> list[np.ndarray]:
    ends = [model.tokenizer.cls_token_id], [model.tokenizer.sep_token_id]
    return [
        np.array(ends[0] + model.tokenizer.encode(text, parse_special_tokens=True).tolist() + ends[1])
        for text in texts
    ]


def log_probabilities(model: MaskedLM, row: np.ndarray, position: int) -> np.ndarray:
    """Returns the bare model's log-probabilities for one unpadded row."""
    graph, _ = split_model(abstract_masked_lm(model.config))
    masked_lm = nnx.merge(graph, model.params)
    logits = masked_lm(jnp.asarray(row[None]), jnp.ones((1, len(row)), bool), jnp.array([[position]]))
    return np.array(jax.nn.log_softmax(logits[0, 0]), np.float64)


def test_fill_mask_after_training(model: MaskedLM) -> None:
    candidates = model.fill_mask("the [MASK] is blue", top_k=3)
    assert candidates[0]["token_str"] == "sea"
    assert candidates[0]["sequence"] == "the sea is blue"
    assert candidates[0]["score"] > 0.5
    assert candidates[0]["token"] == model.tokenizer.token_to_id("sea")
    scores = [candidate["score"] for candidate in candidates]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 3


def test_a_model_that_computes_no_numbers_is_not_ranked_by_them() -> None:
    """Its parameters are finite, but their products overflow."""
    ruined = tiny_masked_lm()
    ruined.params = jax.tree.map(lambda leaf: jnp.full_like(leaf, 3e38), ruined.params)
    for call in (
        lambda: ruined.fill_mask("the [MASK] is blue"),
        lambda: ruined.fill_mask("the [MASK] is [MASK]"),
        lambda: ruined.fill_mask("the [MASK] is blue", targets=["sea"]),
        lambda: ruined.features(["the sea"]),
    ):
        with pytest.raises(RunError, match="the model computes NaN or infinity"):
            call()


def test_scores_are_probabilities_over_the_whole_vocabulary(model: MaskedLM) -> None:
    (row,) = rows_of(model, ["the [MASK] is blue"])
    position = int(np.flatnonzero(row == model.tokenizer.mask_token_id)[0])
    expected = np.exp(log_probabilities(model, row, position))
    ordinary = set(range(model.tokenizer.vocabulary_size)) - set(model.tokenizer.special_token_ids)
    candidates = model.fill_mask("the [MASK] is blue", top_k=len(ordinary))
    assert {c["token"] for c in candidates} == ordinary
    for candidate in candidates:
        assert candidate["score"] == pytest.approx(expected[candidate["token"]], rel=1e-4, abs=1e-9)


def flat_of(found: list[Any]) -> list[Any]:
    return [c for part in found for c in (part if isinstance(part, list) else [part])]


@pytest.mark.parametrize("joint", [False, True])
def test_many_texts_are_answered_as_one_by_one(
    model: MaskedLM, joint: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlm_jax.use.fill_mask._TEXTS_AT_ONCE", 7)
    texts = [
        "the [MASK] is blue",
        "red [MASK] are sweet",
        "sea " * 21 + "[MASK]",
        "[MASK] apples are [MASK]",
    ] * 20
    together = model.fill_mask(texts, top_k=2, joint=joint)
    # The last four, too: rounding depends on the place in a row, the answer does not.
    for text, *both in zip(texts[:4], together[:4], together[76:], strict=True):
        expected = flat_of(model.fill_mask(text, top_k=2, joint=joint))
        for found in map(flat_of, both):
            assert [c["token"] for c in found] == [c["token"] for c in expected]
            np.testing.assert_allclose([c["score"] for c in found], [c["score"] for c in expected], rtol=1e-4)


def test_several_masks_are_filled_jointly(model: MaskedLM) -> None:
    best = model.fill_mask("[MASK] [MASK] are sweet", top_k=3)
    assert best[0]["sequence"] == "red apples are sweet"
    assert best[0]["token_str"] == ["red", "apples"]
    assert best[0]["token"] == [model.tokenizer.token_to_id(word) for word in ("red", "apples")]
    assert len({tuple(answer["token"]) for answer in best}) == 3


def test_each_mask_is_predicted_given_those_filled_before() -> None:
    # A trained toy model is so confident that it ignores the other words. Large random weights do not.
    fresh = tiny_masked_lm()
    params = jax.tree.map(lambda leaf: 10.0 * leaf if leaf.ndim > 1 else leaf, fresh.params)
    model = MaskedLM(fresh.config, params, fresh.tokenizer)
    text = "[MASK] [MASK] are sweet"
    best = model.fill_mask(text, top_k=1)[0]
    (row,) = rows_of(model, [text])
    chances = [log_probabilities(model, row, position) for position in (1, 2)]
    for chance in chances:
        chance[list(model.tokenizer.special_token_ids)] = -np.inf
    first = int(np.argmax([chance.max() for chance in chances]))
    filled = row.copy()
    filled[1 + first] = best["token"][first]
    second = best["token"][1 - first]
    seen = log_probabilities(model, filled, 2 - first)[second]
    assert abs(seen - chances[1 - first][second]) > 0.01
    assert np.log(best["score"]) == pytest.approx(chances[first][best["token"][first]] + seen, abs=1e-4)


def test_independent_masks_are_answered_left_to_right(model: MaskedLM) -> None:
    first, second = model.fill_mask("[MASK] apples are [MASK]", top_k=1, joint=False)
    assert first[0]["sequence"] == f"{first[0]['token_str']} apples are [MASK]"
    assert second[0]["sequence"] == f"[MASK] apples are {second[0]['token_str']}"


def test_targets_of_one_piece(model: MaskedLM) -> None:
    everything = {c["token_str"]: c["score"] for c in model.fill_mask("the [MASK] is blue", top_k=60)}
    found = model.fill_mask("the [MASK] is blue", targets=["apples", "sea", "apples"])
    assert [c["token_str"] for c in found] == ["sea", "apples"]
    for candidate in found:
        assert candidate["score"] == pytest.approx(everything[candidate["token_str"]], rel=1e-4)


def test_targets_of_several_pieces_are_scored_by_their_pieces_in_turn(model: MaskedLM) -> None:
    word = "seapples"
    pieces = model.tokenizer.encode(word)
    assert len(pieces) > 1
    found = model.fill_mask("the [MASK] is blue", targets=["sea", word])
    assert {c["token_str"] for c in found} == {"sea", word}
    (candidate,) = (c for c in found if c["token_str"] == word)
    assert candidate["token"] == pieces.tolist()
    assert candidate["sequence"] == "the seapples is blue"
    (row,) = rows_of(model, ["the seapples is blue"])
    total = 0.0
    for place in range(2, 2 + len(pieces)):
        masked = row.copy()
        masked[place] = model.tokenizer.mask_token_id
        total += log_probabilities(model, masked, place)[row[place]]
    assert np.log(candidate["score"]) == pytest.approx(total, abs=1e-4)
    (one,) = (c for c in found if c["token_str"] == "sea")
    single = model.fill_mask("the [MASK] is blue", targets=["sea"])[0]
    assert one["score"] == pytest.approx(single["score"], rel=1e-4)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("no mask here", {}, r"^no \[MASK\] in 'no mask here'"),
        ("sea " * 39 + "[MASK]", {}, "the text has 42 tokens: the model takes at most 40"),
        ("", {}, "the text is empty"),
        ([], {}, "must be a list of at least one"),
        (["[MASK]", "nothing"], {}, r"text 1: no \[MASK\] in 'nothing'"),
        ("[MASK]", {"top_k": 0}, "top_k = 0: must be in"),
        ("[MASK]", {"top_k": 1.5}, "top_k = 1.5: must be in .* a whole number"),
        ("[MASK]", {"top_k": "3"}, "top_k = '3': must be in"),
        ("[MASK]", {"top_k": 10_000}, "top_k = 10000: must be in"),
        ("[MASK]", {"targets": []}, "targets: must be a list of at least one"),
        ("[MASK]", {"targets": ["\u4e2d"]}, "the tokenizer has no pieces for it"),
        ("[MASK] [MASK]", {"targets": ["seapples"]}, "targets of several pieces: must have one piece"),
        ("sea " * 36 + "[MASK]", {"targets": ["seapples"]}, "the text with it has"),
    ],
)
def test_errors_of_fill_mask(model: MaskedLM, text: Any, options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.fill_mask(text, **options)


@pytest.mark.slow
def test_pseudo_log_likelihood_is_the_sum_of_every_token_masked_in_turn(model: MaskedLM) -> None:
    texts = ["the sea is blue", "blue is sea the apples", "sea"]
    found = model.pseudo_log_likelihood(texts)
    assert found.dtype == np.float64
    for text, total, tokens in zip(
        texts, found, model.pseudo_log_likelihood(texts, per_token=True), strict=True
    ):
        (row,) = rows_of(model, [text])
        expected = []
        for place in range(1, len(row) - 1):
            masked = row.copy()
            masked[place] = model.tokenizer.mask_token_id
            expected.append(log_probabilities(model, masked, place)[row[place]])
        np.testing.assert_allclose([chance for _, chance in tokens], expected, atol=1e-4)
        assert [entry for entry, _ in tokens] == [model.tokenizer.id_to_token(int(t)) for t in row[1:-1]]
        assert total == pytest.approx(sum(expected), abs=1e-3)
    assert found[0] > found[1]


def test_mask_log_probabilities(model: MaskedLM) -> None:
    texts = ["the [MASK] is blue", "[MASK] apples are sweet"]
    found = model.mask_log_probabilities(texts)
    assert found.shape == (2, model.config.vocabulary_size)
    for row, chances in zip(rows_of(model, texts), found, strict=True):
        place = int(np.flatnonzero(row == model.tokenizer.mask_token_id)[0])
        np.testing.assert_allclose(chances, log_probabilities(model, row, place), atol=1e-4)
    two = rows_of(model, ["[MASK] apples are [MASK]"])[0]
    (first,) = model.mask_log_probabilities(["[MASK] apples are [MASK]"])
    np.testing.assert_allclose(first, log_probabilities(model, two, 1), atol=1e-4)


@pytest.mark.parametrize("layer", [0, 1, -1, -2])
def test_features(model: MaskedLM, layer: int) -> None:
    texts = ["the sea is blue", "red apples", "sea " * 20]
    none, cls, mean = (model.features(texts, layers=layer, pooling=p) for p in ("none", "cls", "mean"))
    encoder = model.backbone
    for index, row in enumerate(rows_of(model, texts)):
        ids, mask = jnp.asarray(row[None]), jnp.ones((1, len(row)), bool)
        if layer in (0, -2):
            expected = encoder.embeddings(ids, ids >= 0, jnp.zeros_like(ids), None, None, "float32")[0]
        else:
            expected = encoder(ids, mask)[0]
        np.testing.assert_allclose(none[index], expected, atol=1e-5)
        np.testing.assert_allclose(cls[index], expected[0], atol=1e-5)
        np.testing.assert_allclose(mean[index], np.mean(expected, axis=0), atol=1e-5)


def test_several_layers_are_those_asked_for_one_by_one(model: MaskedLM) -> None:
    deep = tiny_masked_lm(num_layers=3, norm_placement="pre", initializer_stddev=0.2)
    texts = ["the sea is blue", "red apples", ""]
    for pooling in ("mean", "max", "cls"):
        found = deep.features(texts, layers=[-1, 0, 2, -2], pooling=pooling)
        assert found.shape == (3, 4, 32)
        for place, layer in enumerate([-1, 0, 2, -2]):
            alone = deep.features(texts, layers=layer, pooling=pooling)
            np.testing.assert_allclose(found[:, place], alone, atol=1e-5)
    every = deep.features(texts, layers=(0, 3))
    assert [states.shape for states in every] == [(6, 2, 32), (4, 2, 32), (2, 2, 32)]
    np.testing.assert_allclose(every[1][:, 1], deep.features(texts)[1], atol=1e-5)


def test_max_pooling_ignores_padding(model: MaskedLM) -> None:
    texts = ["the sea is blue", "sea", ""]
    tokens = model.features(texts)
    expected = np.stack([states.max(axis=0) for states in tokens])
    np.testing.assert_allclose(model.features(texts, pooling="max"), expected, atol=1e-5)


def test_errors_of_features(model: MaskedLM) -> None:
    long = "sea " * 50
    with pytest.raises(InputError, match="text 1: has 52 tokens: the model takes at most 40"):
        model.features(["sea", long])
    assert model.features(["sea", long], truncate=True)[1].shape == (40, 32)
    for options in (
        *(
            {"layers": 2},
            {"layers": -3},
            {"layers": [0, 2]},
            {"layers": []},
            {"layers": True},
            {"layers": [0.5]},
        ),
        {"pooling": "min"},
    ):
        with pytest.raises(InputError, match=f"^{next(iter(options))}"):
            model.features(["sea"], **options)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("sea", "texts: found str 'sea': must be a list"),
        ({"text": "sea"}, "texts: found dict .*: must be a list"),
        ({"sea"}, "texts: found set .*: must be a list"),
        ([], "texts: must be a list of at least one"),
        (["[MASK]", None], "text 1: "),
        (["[MASK]", b"sea"], "text 1: "),
        (["[MASK]", {"text": "sea"}], "text 1: "),
        (["[MASK]", float("nan")], "text 1: "),
        (["[MASK]", ["sea"]], "text 1: "),
        (["[MASK]", "\ud800"], "(text|document) 1: "),
    ],
)
def test_texts_of_the_wrong_type_are_named(model: MaskedLM, texts: Any, message: str) -> None:
    for call in (model.features, model.pseudo_log_likelihood, model.mask_log_probabilities):
        with pytest.raises(InputError, match=message):
            call(texts)
    if isinstance(texts, list) and texts:
        with pytest.raises(InputError, match=message):
            model.fit(texts)
        with pytest.raises(InputError, match=message):
            model.evaluate(texts)


def test_arrays_and_generators_are_texts(model: MaskedLM) -> None:
    expected = model.features(["red apples", "the sea"], pooling="mean")
    for texts in (
        np.array(["red apples", "the sea"]),
        ("red apples", "the sea"),
        iter(["red apples", "the sea"]),
    ):
        np.testing.assert_array_equal(model.features(texts, pooling="mean"), expected)
    masked = model.fill_mask(np.array(["the [MASK] is blue"]))
    assert masked == model.fill_mask(["the [MASK] is blue"])


def test_one_compilation_per_shape_of_a_batch(model: MaskedLM) -> None:
    fresh = MaskedLM(replace(model.config, max_sequence_length=40), model.params, model.tokenizer)
    for words in range(1, 20):
        fresh.fill_mask(["sea " * words + "[MASK]", "[MASK]"])
    fresh.params = jax.tree.map(lambda leaf: leaf * 1.0, fresh.params)
    fresh.fill_mask(["[MASK]", "[MASK] sea"])
    assert fresh._inference._log_softmax._cache_size() == 1
    assert fresh._inference._hidden._cache_size() == 1


def test_save_and_load(model: MaskedLM, tmp_path: Path) -> None:
    model.save(tmp_path / "saved")
    again = MaskedLM.from_preset(tmp_path / "saved")
    assert again.config == replace(model.config, vocabulary_multiple=1)
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
    with pytest.raises(InputError, match="already exists"):
        model.save(tmp_path / "saved")


def test_a_model_without_a_head_has_features_and_can_be_fitted(
    model: MaskedLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = MaskedLM(model.config, {"encoder": model.params["encoder"]}, model.tokenizer)
    bare.save(tmp_path / "bare")
    bare = MaskedLM.from_preset(tmp_path / "bare")
    np.testing.assert_array_equal(bare.features(["the sea"])[0], model.features(["the sea"])[0])
    assert bare.backbone(jnp.array([[5]]), jnp.ones((1, 1), bool)).shape == (1, 1, 32)
    assert "no masked-LM head" in repr(bare)
    for call in (
        lambda: bare.fill_mask("the [MASK]"),
        lambda: bare.pseudo_log_likelihood(["the sea"]),
        lambda: bare.mask_log_probabilities(["the [MASK]"]),
        lambda: bare.evaluate(["the sea"]),
    ):
        with pytest.raises(InputError, match="has no masked-LM head"):
            call()
    encoder = jax.tree.map(np.asarray, bare.params["encoder"])
    bare.fit(FRUIT, batch_size=4, freeze_backbone=True)
    assert "the masked-LM head has random weights" in capsys.readouterr().err
    jax.tree.map(np.testing.assert_array_equal, bare.params["encoder"], encoder)
    assert len(bare.fill_mask("the [MASK]")) == 5
    with pytest.raises(InputError, match="not a known model format"):
        MaskedLM.from_preset(tmp_path)


def test_the_repr_has_shape_size_and_tokenizer(model: MaskedLM) -> None:
    size = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    entries = model.tokenizer.vocabulary_size
    assert repr(model) == (
        f"MaskedLM(1 layer, hidden_dim 32, 2 heads, {size:,} parameters, "
        f"Tokenizer({entries} entries, fingerprint {model.tokenizer.fingerprint[:12]}))"
    )


@pytest.mark.slow
def test_rows_beyond_the_trained_length_are_reported_once(
    model: MaskedLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = TrainingRecord(12, "packed", False, MaskingRecipe(), "float32", 12)
    MaskedLM(model.config, model.params, model.tokenizer, record).save(tmp_path / "saved")
    calls = {
        "features": lambda lm, text: lm.features([text]),
        "evaluate": lambda lm, text: lm.evaluate([text]),
        "fill_mask": lambda lm, text: lm.fill_mask(f"{text} [MASK]"),
    }
    for name, call in calls.items():
        lm = MaskedLM.from_preset(tmp_path / "saved")
        call(lm, "sea " * 9)
        assert capsys.readouterr().err == "", name
        call(lm, "sea " * 11)
        assert "the model was trained with rows of at most 12" in capsys.readouterr().err, name
        call(lm, "sea " * 11)
        assert capsys.readouterr().err == "", name
    lm.fit(["sea " * 20], num_steps=1, batch_size=1)
    assert lm.training is not None
    assert lm.training.longest_rows == 22


@pytest.mark.release
def test_a_thousand_short_sentences_take_less_than_three_seconds(shared_data: Path) -> None:
    """Runs in a child process, because tests simulate eight devices and compile without optimization."""
    code = """
import sys, time
from mlm_jax import MaskedLM, Tokenizer
tokenizer = Tokenizer.load(sys.argv[1])
lm = MaskedLM.from_preset("bert_tiny_en_uncased", load_weights=False, tokenizer=tokenizer)
texts = [f"The {n} small birds of the old town [MASK] at noon." for n in range(1000)]
lm.fill_mask(texts)
seconds = []
for _ in range(3):
    start = time.perf_counter()
    lm.fill_mask(texts)
    seconds.append(time.perf_counter() - start)
print(min(seconds))
"""
    ended = run_python(code, shared_data / "vocab" / "bert-base-uncased", optimised=True)
    assert float(ended.stdout) < 3, ended.stderr


def test_unknown_tokens_are_reported(model: MaskedLM) -> None:
    texts = ["the sea is blue", "東 sea"]
    for call in (model.features, model.pseudo_log_likelihood, model.encode):
        with pytest.warns(UserWarning, match=r"^texts: 50\.0% of the tokens are unknown .* such as '東'; "):
            call(texts[1:] * 2)
    with pytest.warns(UserWarning, match=r"^texts: .* of the tokens are unknown .* such as '京都'; "):
        model.fill_mask("京都 [MASK]")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.features(texts[:1])
        model.fill_mask("the [MASK] is blue")


def test_masks_that_the_tokenizer_finds_elsewhere_are_refused(tmp_path: Path) -> None:
    """A mask token that is compared with normalized text is found in lower case, too."""
    model = tiny_masked_lm()
    content = json.loads(model.tokenizer.backend.to_str())
    for token in content["added_tokens"]:
        token["normalized"] = token["content"] == "[MASK]"
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    model.tokenizer = Tokenizer.load(tmp_path)
    assert model.fill_mask("the [MASK] is blue")
    with pytest.raises(
        InputError, match=r"the tokenizer finds 2 masks in .*: must be 1, the number of \[MASK\]"
    ):
        model.fill_mask("the [mask] is [MASK]")


def test_arguments_that_would_mean_something_else_are_refused(model: MaskedLM) -> None:
    """Ids and positions out of range would be those of other tokens, and a string would be True."""
    rows, size = model.encode(["the sea"]), model.config.vocabulary_size
    for call, message in (
        (lambda: model.features_of_rows([np.array([size])]), rf"row 0: must have ids in \[0, {size}\)"),
        (lambda: model.features_of_rows([np.array([-1])]), "row 0: must have ids in"),
        (lambda: model.features_of_rows(["the sea"]), "row 0: must have from 1 to 40 token ids"),
        (lambda: model.features_of_rows([[]]), "row 0: must have from 1 to 40 token ids"),
        (lambda: model.token_log_probabilities(rows, [[-1]]), r"positions 0: must be in \[0, 4\)"),
        (lambda: model.token_log_probabilities(rows, [[4]]), r"positions 0: must be in \[0, 4\)"),
        (
            lambda: model.token_log_probabilities(rows, [[1], [2]]),
            "2 lists of positions: must be one for each of 1 rows",
        ),
        (lambda: model.token_log_probabilities(rows, [[1.5]]), "positions 0: must be whole numbers"),
        (lambda: model.token_log_probabilities(rows, [[False, True]]), "positions 0: must be whole numbers"),
        (lambda: model.features_of_rows([], pooling="mean"), "rows: must be a list of at least one"),
        (lambda: model.features_of_rows(None), "rows: must be a list of at least one"),
        (lambda: model.features(["sea"], truncate="no"), "truncate = 'no': must be True or False"),
        (
            lambda: model.pseudo_log_likelihood(["sea"], per_token="no"),
            "per_token = 'no': must be True or False",
        ),
        (
            lambda: MaskedLM.from_preset("bert_tiny_en_uncased", load_weights="no"),
            "load_weights = 'no': must be True or False",
        ),
        (
            lambda: random_model(model.config, model.tokenizer, jax.random.key(0)),
            "seed = .*: must be a whole",
        ),
        (lambda: model.save(5), "the output: found int 5: must be a path"),
        (lambda: model.save("a\0b"), r"'a\\x00b': must be a path"),
        (lambda: model.tokenizer.save(5), "the output: found int 5: must be a path"),
        (lambda: model.tokenizer.save("gs://bucket/tokenizer"), "must be a local path, not a URL"),
        (lambda: model.tokenizer.save("~/tokenizer"), "~ means a home folder only in a shell"),
        (lambda: model.tokenizer.save(__file__), "is a file; must be a folder"),
        (lambda: model.fill_mask("[MASK] [MASK]", joint="no"), "joint = 'no': must be True or False"),
        (lambda: model.fill_mask("[MASK]", targets=5), "targets: found int 5: must be a list"),
        (
            lambda: model.fit(["the sea"], freeze_backbone="no"),
            "freeze_backbone = 'no': must be True or False",
        ),
        (
            lambda: model.fit(["the sea"], sequence_length="8"),
            "sequence_length = '8': must be a whole number",
        ),
        (lambda: model.fit({"token_ids": [[1]]}, batch_size="2"), "batch_size = '2': must be a whole number"),
        (
            lambda: MaskedLM.from_preset("bert_tiny_en_uncased", tokenizer="bert"),
            "tokenizer: found str: must be",
        ),
        (lambda: random_model(model.config, model.tokenizer, "a"), "seed = 'a': must be a whole number"),
        (lambda: model.tokenizer.id_to_token("sea"), "token_id 'sea': expected an integer"),
        (lambda: Tokenizer.load(5), "tokenizer: expected a path, found int"),
        (lambda: train({"num_steps": 5}), "config: found dict: must be a TrainConfig"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    assert model.fill_mask("the [MASK] is blue", targets={"sea"})[0]["token_str"] == "sea"
    assert model.tokenizer.id_to_token(-1) is None


def test_parameters_and_tokenizer_must_be_those_of_the_config(model: MaskedLM) -> None:
    larger = Tokenizer.train(["abcdefghijklmnopqrstuvwxyz", *(f"word{n} other{n}" for n in range(200))], 400)
    for arguments, message in (
        (
            (replace(model.config, num_layers=2), model.params, model.tokenizer),
            r"params: tensor .* has shape",
        ),
        ((model.config, {"encoder": {}}, model.tokenizer), r"params: \d+ missing tensors"),
        ((model.config, model.params | {"haed": {"bias": 0.0}}, model.tokenizer), "params: 1 unknown tensor"),
        ((model.config, None, model.tokenizer), "params: found NoneType: must be a dict"),
        ((model.config, model.params, larger), "params: the embedding table has .* must be at least as many"),
        ((model.config, model.params, None), "found a BertConfig and a NoneType: must be"),
    ):
        with pytest.raises(InputError, match=f"^{message}"):
            MaskedLM(*arguments)
