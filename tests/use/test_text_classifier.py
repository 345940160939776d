"""TextClassifier: fits, keeps its best epoch, predicts, and reports errors."""

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from scipy.stats import spearmanr

from mlm_jax.commands import finetune
from mlm_jax.errors import InputError, RunError
from mlm_jax.formats.model_folder import random_classifier
from mlm_jax.use.masked_lm import MaskedLM
from mlm_jax.use.objectives import OBJECTIVES, rank_of
from mlm_jax.use.text_classifier import TextClassifier
from tests.run_small import run_script
from tests.tiny import BAD, GOOD, encoder_folder

TEXTS = (GOOD + BAD) * 6
LABELS = ([1] * 5 + [0] * 5) * 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked LM without a pooler, as after a training run."""
    return encoder_folder(tmp_path_factory.mktemp("models") / "masked_lm", dropout_rate=0.1)


@pytest.fixture(scope="module")
def fitted(folder: Path) -> TextClassifier:
    classifier = TextClassifier.from_preset(folder, num_classes=2)
    evaluations = classifier.fit(
        TEXTS,
        LABELS,
        batch_size=16,
        num_epochs=12,
        learning_rate=3e-3,
        eval_texts=GOOD + BAD,
        eval_labels=LABELS[:10],
    )
    assert len(evaluations) == 12
    return classifier


def test_fit_and_predict(fitted: TextClassifier) -> None:
    assert fitted.evaluate(TEXTS, LABELS).accuracy == 1.0
    probabilities = fitted.predict_probabilities(GOOD + BAD)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(fitted.predict(GOOD + BAD), LABELS[:10])
    # One at a time, and in another order.
    for index in (7, 0, 3):
        alone = fitted.predict_probabilities([(GOOD + BAD)[index]])
        np.testing.assert_allclose(alone[0], probabilities[index], atol=1e-5)


def test_the_order_of_a_set_of_labels(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Positions mean the order of a dictionary's keys; that of a set is reported."""
    positions = {"neutral": 0, "bad": 1, "good": 2}
    classifier = TextClassifier.from_preset(folder, labels=positions.keys())
    assert classifier.labels == tuple(positions)
    assert "a set" not in capsys.readouterr().err
    TextClassifier.from_preset(folder, labels=set(positions))
    message = "labels: a set has no order: the classes are ('bad', 'good', 'neutral'), in this order"
    assert message in capsys.readouterr().err


def test_a_classifier_that_computes_no_numbers_predicts_nothing(folder: Path) -> None:
    classifier = TextClassifier.from_preset(folder, num_classes=2)
    classifier.params = jax.tree.map(lambda leaf: np.full_like(leaf, 3e38), classifier.params)
    with pytest.raises(RunError, match="the model computes NaN or infinity"):
        classifier.predict(GOOD)


def test_lower_layers_learn_more_slowly_with_layer_rate_decay(folder: Path) -> None:
    moved = {}
    for decay in (1.0, 0.25):
        classifier = TextClassifier.from_preset(folder, num_classes=2, dropout_rate=0.0)
        before = jax.tree.map(np.asarray, classifier.params)
        classifier.fit(
            TEXTS,
            LABELS,
            batch_size=len(TEXTS),
            num_epochs=1,
            learning_rate=1e-2,
            layer_rate_decay=decay,
        )
        moved[decay] = jax.tree.map(
            lambda after, before: np.abs(np.asarray(after) - before).mean(), classifier.params, before
        )
    ratio = jax.tree.map(lambda slow, full: slow / full, moved[0.25], moved[1.0])
    assert ratio["classifier"]["kernel"] == pytest.approx(1, rel=1e-3)
    assert ratio["encoder"]["pooler"]["kernel"] == pytest.approx(1, rel=1e-3)
    assert ratio["encoder"]["layers"]["feed_forward"]["up"]["kernel"] == pytest.approx(0.25, rel=1e-3)
    assert ratio["encoder"]["embeddings"]["token"] == pytest.approx(0.25**2, rel=1e-3)


@pytest.mark.slow
def test_dropout_rate_replaces_the_models_own(folder: Path) -> None:
    losses, probabilities = {}, []
    for rate in (0.0, 0.5):
        classifier = TextClassifier.from_preset(folder, dropout_rate=rate)
        assert (classifier.config.dropout_rate, classifier.config.attention_dropout_rate) == (rate, rate)
        probabilities.append(classifier.predict_probabilities(TEXTS))
        losses[rate] = []
        classifier.fit(
            TEXTS,
            LABELS,
            num_epochs=1,
            on_epoch=lambda _, steps, __, rate=rate: losses[rate].extend(steps.losses),
        )
    np.testing.assert_array_equal(*probabilities)
    assert losses[0.0][0] != losses[0.5][0]
    with pytest.raises(InputError, match="dropout_rate"):
        TextClassifier.from_preset(folder, dropout_rate=1.5)


def test_an_interrupted_fit_leaves_the_classifier_unchanged(folder: Path) -> None:
    classifier = TextClassifier.from_preset(folder)
    before = jax.tree.map(np.asarray, classifier.params)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        classifier.fit(TEXTS, LABELS, num_epochs=2, learning_rate=1e-3, on_epoch=interrupt)
    jax.tree.map(np.testing.assert_array_equal, classifier.params, before)


def test_the_pooler_is_trained_and_the_encoder_can_be_frozen(folder: Path) -> None:
    classifier = TextClassifier.from_preset(folder)
    before = jax.tree.map(np.asarray, classifier.params)
    classifier.fit(TEXTS, LABELS, batch_size=16, num_epochs=1, learning_rate=1e-3)
    pooler = classifier.params["encoder"]["pooler"]["kernel"]
    assert (np.asarray(pooler) != before["encoder"]["pooler"]["kernel"]).mean() > 0.9
    frozen = TextClassifier.from_preset(folder)
    frozen.fit(TEXTS, LABELS, batch_size=16, num_epochs=1, learning_rate=1e-3, freeze_backbone=True)
    jax.tree.map(np.testing.assert_array_equal, frozen.params["encoder"], before["encoder"])
    assert (np.asarray(frozen.params["classifier"]["kernel"]) != before["classifier"]["kernel"]).any()


def test_a_message_names_the_parts_that_are_random(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classifier = TextClassifier.from_preset(folder)
    assert "the classifier and the pooler have random weights" in capsys.readouterr().err
    embeddings = MaskedLM.from_preset(folder).params["encoder"]["embeddings"]
    jax.tree.map(np.testing.assert_array_equal, classifier.params["encoder"]["embeddings"], embeddings)
    drawn = TextClassifier.from_preset(folder, load_weights=False, seed=5)
    assert (drawn.params["encoder"]["embeddings"]["token"] != embeddings["token"]).any()


def test_the_best_epoch_is_kept(folder: Path) -> None:
    classifier = TextClassifier.from_preset(folder)
    seen = []

    def remember(epoch: int, *_: object) -> None:
        seen.append(jax.tree.map(np.asarray, classifier.params))

    evaluations = classifier.fit(
        TEXTS,
        LABELS,
        batch_size=16,
        num_epochs=8,
        learning_rate=3e-3,
        eval_texts=GOOD + BAD,
        # Half of them are wrong on purpose, so that training moves away from them.
        eval_labels=[1, 0] * 5,
        on_epoch=remember,
    )
    best = int(np.argmax([found.accuracy for found in evaluations]))
    assert best < 7
    jax.tree.map(np.testing.assert_array_equal, classifier.params, seen[best])


def test_save_and_load(fitted: TextClassifier, tmp_path: Path) -> None:
    fitted.save(tmp_path / "saved")
    again = TextClassifier.from_preset(tmp_path / "saved")
    assert again.labels == fitted.labels
    np.testing.assert_array_equal(again.predict_probabilities(GOOD), fitted.predict_probabilities(GOOD))
    with pytest.raises(InputError, match="has 2 classes: must have the requested 3"):
        TextClassifier.from_preset(tmp_path / "saved", num_classes=3)
    with pytest.raises(InputError, match="num_classes = '2': must be a whole number"):
        TextClassifier.from_preset(tmp_path / "saved", num_classes="2")


def test_pairs_have_two_segments_and_the_longer_text_is_cut(fitted: TextClassifier) -> None:
    ((token_ids, segment_ids),) = fitted._rows([("a joy", "a waste of time")], None)
    sep = fitted.tokenizer.sep_token_id
    assert (token_ids == sep).sum() == 2
    first = int(np.flatnonzero(token_ids == sep)[0])
    assert segment_ids[: first + 1].sum() == 0
    assert segment_ids[first + 1 :].all()
    ((cut, _),) = fitted._rows([("a joy", "dull " * 100)], 24)
    assert len(cut) == 24
    assert fitted.tokenizer.decode(cut).startswith("[CLS] a joy [SEP]")
    assert fitted.predict([("a joy", "sweet")]).shape == (1,)


def test_every_epoch_takes_every_row_once_in_another_order(fitted: TextClassifier) -> None:
    rows = fitted._rows(TEXTS, None)
    numbers = np.arange(len(rows), dtype=np.int32)
    orders = []
    for order in ((0, 0), (0, 1), (1, 0)):
        taken = np.concatenate([b.labels[b.weights > 0] for b in fitted._batches(rows, numbers, 16, order)])
        np.testing.assert_array_equal(np.sort(taken), numbers)
        orders.append(tuple(taken))
    assert len(set(orders)) == 3


def test_the_loss_of_a_step_is_that_of_its_texts(fitted: TextClassifier) -> None:
    """Whatever row a text is in, it counts once."""
    rows, targets = fitted._rows([*TEXTS[:7], "a joy " * 12], None), fitted._targets([*LABELS[:7], 0], 8)
    (batch,) = fitted._batches(rows, targets, 8, (0, 0))
    assert (batch.weights.sum(axis=1) > 1).any()
    found = jax.jit(partial(fitted._summed_loss, dropout_key=None))(fitted.params, batch)
    alone = np.concatenate([fitted._all_logits([row]) for row in rows])
    assert found.weight == 8
    losses = fitted._objective.losses(alone, targets)
    assert float(found.loss) == pytest.approx(float(losses.sum()), rel=1e-5)
    assert found.correct == (alone.argmax(axis=1) == targets).sum()


def test_errors_name_the_text_label_or_setting(fitted: TextClassifier) -> None:
    with pytest.raises(InputError, match=r"label 1: 2: must be one of \('0', '1'\)"):
        fitted.fit(GOOD[:2], [0, 2])
    with pytest.raises(InputError, match=r"eval label 0: 0\.5: must be"):
        fitted.fit(GOOD[:2], [0, 1], eval_texts=GOOD[:1], eval_labels=[0.5])
    with pytest.raises(InputError, match="label 0: 'good': must be"):
        fitted.evaluate(GOOD[:1], ["good"])
    with pytest.raises(InputError, match="1 labels: must be one for each of 2 texts"):
        fitted.evaluate(GOOD[:2], [1])
    with pytest.raises(InputError, match="batch_size = 0: must be a whole number, at least 1"):
        fitted.fit(GOOD, [1] * 5, batch_size=0)
    with pytest.raises(InputError, match="num_epochs = 0"):
        fitted.fit(GOOD, [1] * 5, num_epochs=0)
    with pytest.raises(InputError, match=r"^num_epochs = 1\.5: must be a whole number"):
        fitted.fit(GOOD, [1] * 5, num_epochs=1.5)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "texts: must be a list of at least one"),
        ("a joy", "texts: found str 'a joy': must be a list"),
        ({"text": "a joy"}, "texts: found dict"),
        ([("a", "b", "c")], "text 0: found 3 strings: must be a string or a pair"),
        (["a joy", {"text": "a joy", "label": 1}], "text 1: found dict .*: must be a string or a pair"),
        (["a joy", None], "text 1: found None: must be a string or a pair"),
        (["a joy", b"a joy"], "text 1: found bytes"),
        (["a joy", 3], "text 1: found int 3"),
        (["a joy", {"a", "b"}], "text 1: found set"),
        (["a joy", ("a", None)], "text 1: found None in it"),
        (["a joy", ("a", "\ud800")], "text 1: lone surrogate"),
    ],
)
def test_texts_of_the_wrong_type_are_named(fitted: TextClassifier, texts: Any, message: str) -> None:
    for call in (fitted.predict, lambda texts: fitted.fit(texts, [1] * len(texts))):
        with pytest.raises(InputError, match=message):
            call(texts)


@pytest.mark.slow
def test_classes_named_by_numbers_are_learned_by_their_names(folder: Path) -> None:
    classifier = TextClassifier.from_preset(folder, labels=[1, 2, 3], dropout_rate=0.0)
    stars = np.array([3] * 5 + [1] * 5)
    classifier.fit(np.array(GOOD + BAD), stars, batch_size=16, num_epochs=40, learning_rate=1e-2)
    assert [classifier.labels[index] for index in classifier.predict(GOOD + BAD)] == ["3"] * 5 + ["1"] * 5
    with pytest.raises(InputError, match="num_classes = 2: must be the number of labels, 3"):
        TextClassifier.from_preset(folder, labels=[1, 2, 3], num_classes=2)


def test_arguments_that_contradict_a_trained_head_are_rejected(
    fitted: TextClassifier, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def saved(name: str, labels: list[str]) -> Path:
        TextClassifier(fitted.config, fitted.params, fitted.tokenizer, labels, fitted.problem_type).save(
            tmp_path / name
        )
        return tmp_path / name

    named = saved("named", ["dull", "sweet"])
    assert TextClassifier.from_preset(named, labels=["dull", "sweet"]).labels == ("dull", "sweet")
    # A set has no order, and may lack a class.
    assert TextClassifier.from_preset(named, labels={"sweet"}).labels == ("dull", "sweet")
    for labels in (["sweet", "dull"], ["bad", "good"], ["dull", "good"], {"dull", "other"}, {"sour"}):
        with pytest.raises(InputError, match=r"has .*classes"):
            TextClassifier.from_preset(named, labels=labels)
    with pytest.raises(InputError, match="has problem_type 'single_label_classification'"):
        TextClassifier.from_preset(named, labels=["dull", "sweet"], problem_type="regression")
    capsys.readouterr()
    unnamed = saved("unnamed", ["LABEL_0", "LABEL_1"])
    assert TextClassifier.from_preset(unnamed, labels=["bad", "good"]).labels == ("bad", "good")
    assert "('LABEL_0', 'LABEL_1') are now called ('bad', 'good')" in capsys.readouterr().err
    with pytest.raises(InputError, match="has the classes"):
        TextClassifier.from_preset(saved("numbered", ["0", "1"]), labels=["1", "2"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"num_classes": 1},
            "num_classes = 1: must be a whole number, at least 2; one output is a 'regression'",
        ),
        ({"labels": ["one"]}, "num_classes = 1: must be"),
        ({"num_classes": 2.5}, "num_classes = 2.5: must be a whole number"),
        ({"num_classes": True}, "num_classes = True: must be a whole number"),
        ({"num_classes": 10**12}, "num_classes = 1000000000000: must be at most 4,194,304"),
        ({"seed": 1.5}, r"seed = 1\.5: must be a whole number in \[0, 2\*\*32\)"),
        ({"seed": -1}, "seed = -1: must be"),
        ({"seed": 2**40}, "seed = 1099511627776: must be"),
        ({"problem_type": "multi_label_classification"}, "must be given with labels or num_classes"),
        ({"problem_type": "binary"}, "problem_type = 'binary': must be one of"),
        ({"labels": "ab"}, "labels: found str"),
    ],
)
def test_errors_of_a_new_classifier(folder: Path, settings: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TextClassifier.from_preset(folder, **settings)


@pytest.mark.slow
def test_a_regression_learns_values(folder: Path, tmp_path: Path) -> None:
    values = [4.5] * 5 + [-1.5] * 5
    model = TextClassifier.from_preset(folder, problem_type="regression", dropout_rate=0.0)
    assert (model.labels, model.problem_type) == (("0",), "regression")
    evaluations = model.fit(
        GOOD + BAD,
        values,
        batch_size=16,
        num_epochs=60,
        learning_rate=1e-2,
        eval_texts=GOOD + BAD,
        eval_labels=values,
    )
    losses = [found.loss for found in evaluations]
    best = model.evaluate(GOOD + BAD, values)
    assert best.loss == pytest.approx(min(losses), rel=1e-4)
    found = model.predict(GOOD + BAD)
    assert (found.shape, found.dtype) == ((10,), np.float32)
    np.testing.assert_allclose(found, values, atol=0.5)
    assert best.loss == pytest.approx(np.mean((found - values) ** 2), rel=1e-4)
    assert best.metrics == pytest.approx(
        {
            "pearson": np.corrcoef(found, values)[0, 1],
            "spearman": spearmanr(found, values).statistic,
            "rmse": np.sqrt(best.loss),
        },
        rel=1e-4,
    )
    assert best.accuracy is None
    constant = model.evaluate(GOOD[:2], [1.0, 1.0]).metrics
    assert (constant["pearson"], constant["spearman"]) == (None, None)
    with pytest.raises(InputError, match="a regression has none"):
        model.predict_probabilities(GOOD)
    model.save(tmp_path / "saved")
    again = TextClassifier.from_preset(tmp_path / "saved")
    assert again.problem_type == "regression"
    np.testing.assert_array_equal(again.predict(GOOD + BAD), found)


@pytest.mark.slow
def test_several_labels_and_one_probability_are_learned(folder: Path, tmp_path: Path) -> None:
    texts = ["a joy", "a waste", "a joy a waste", "cold"]
    labels = [["joy"], ["waste"], ["joy", "waste"], []]
    model = TextClassifier.from_preset(
        folder, labels=["joy", "waste"], problem_type="multi_label_classification", dropout_rate=0.0
    )
    model.fit(
        texts, labels, batch_size=16, num_epochs=80, learning_rate=1e-2, eval_texts=texts, eval_labels=labels
    )
    assert model.predict(texts).tolist() == [[True, False], [False, True], [True, True], [False, False]]
    assert model.evaluate(texts, labels).metrics == {"micro_f1": 1.0, "accuracy": 1.0}
    half_wrong = model.evaluate(texts, [["joy"], ["joy"], [], []]).metrics
    assert half_wrong == {"micro_f1": pytest.approx(2 * 1 / 6), "accuracy": 0.5}
    assert model.evaluate(texts[3:], [[]]).metrics["micro_f1"] is None
    one = TextClassifier.from_preset(
        folder, num_classes=1, problem_type="multi_label_classification", dropout_rate=0.0
    )
    one.fit(texts, [1, 0, 1, 0], batch_size=16, num_epochs=80, learning_rate=1e-2)
    assert one.predict(texts).tolist() == [True, False, True, False]
    assert one.predict_probabilities(texts).shape == (4, 1)


def test_the_metrics_that_select_an_epoch() -> None:
    for problem, metrics, rank in (
        ("single_label_classification", {"accuracy": 0.5}, 0.5),
        ("multi_label_classification", {"micro_f1": None, "accuracy": 1.0}, -math.inf),
        ("regression", {"pearson": 0.9, "spearman": 0.9, "rmse": 2.0}, -2.0),
        ("regression", {"pearson": None, "spearman": None, "rmse": math.nan}, -math.inf),
    ):
        assert rank_of(OBJECTIVES[problem], metrics) == rank


def test_the_repr_has_shape_type_and_classes(fitted: TextClassifier) -> None:
    assert repr(fitted).startswith("TextClassifier(1 layer, hidden_dim 32, 2 heads, ")
    assert "single_label_classification, labels ('0', '1'), Tokenizer(" in repr(fitted)


@pytest.mark.slow
def test_the_script(folder: Path, tmp_path: Path) -> None:
    for name in ("train", "dev"):
        rows = [f"{text}\t{label}\n" for text, label in zip(TEXTS, LABELS, strict=True)]
        (tmp_path / f"{name}.tsv").write_text("sentence\tlabel\n" + "".join(rows))
    arguments = ("--train", tmp_path / "train.tsv", "--dev", tmp_path / "dev.tsv", "--learning-rate", "3e-3")
    done = run_script(
        "finetune",
        folder,
        *arguments,
        "--num-epochs",
        "4",
        "--batch-size",
        "16",
        "--output",
        tmp_path / "out",
    )
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert len(printed["dev_epochs"]) == 4
    assert printed["dev_accuracy"] == max(epoch["accuracy"] for epoch in printed["dev_epochs"])
    assert "epoch 4: loss" in done.stderr
    kept = TextClassifier.from_preset(tmp_path / "out")
    assert kept.labels == ("0", "1")
    assert kept.evaluate(TEXTS, [str(label) for label in LABELS]).accuracy == printed["dev_accuracy"]
    again = run_script("finetune", folder, *arguments, "--output", tmp_path / "out")
    assert (again.returncode, again.stdout) == (2, "")
    assert "already exists" in again.stderr


def write_tsv(file: Path, rows: list[tuple[str, object]]) -> Path:
    file.write_text("sentence\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows))
    return file


def test_the_script_fits_a_regression_on_fractions(folder: Path, tmp_path: Path) -> None:
    rows = [*((text, 4.5) for text in GOOD), *((text, 1) for text in BAD)]
    train = write_tsv(tmp_path / "train.tsv", rows)
    arguments = ("finetune", folder, "--num-epochs", 2, "--train", train, "--dev", train)
    done = run_script(*arguments, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "train.tsv: labels are numbers with fractions, such as 4.5: fits a regression" in done.stderr
    printed = json.loads(done.stdout)
    assert {"dev_pearson", "dev_spearman", "dev_rmse", "epoch", "dev_epochs"} == set(printed)
    assert printed["dev_rmse"] == min(epoch["rmse"] for epoch in printed["dev_epochs"])
    # Continues as a regression, even on whole numbers.
    whole = write_tsv(tmp_path / "whole.tsv", [("a joy", 4), ("a waste", 1)])
    again = run_script("finetune", tmp_path / "out", "--num-epochs", 1, "--train", whole, "--dev", whole)
    assert "dev_rmse" in json.loads(again.stdout), again.stderr
    # Squares that float32 does not have.
    huge = write_tsv(tmp_path / "huge.tsv", [("a joy", "1e30"), ("a waste", "-1e30")])
    overflown = run_script("finetune", tmp_path / "out", "--num-epochs", 1, "--train", whole, "--dev", huge)
    assert overflown.returncode == 0, overflown.stderr
    assert (overflown.stdout.count("null"), "Infinity" in overflown.stdout) == (1, False)
    bad = write_tsv(tmp_path / "bad.tsv", [("a joy", 4.5), ("a waste", "low")])
    refused = run_script("finetune", folder, "--train", bad, "--dev", train)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "bad.tsv:3: label is 'low': must be a number" in refused.stderr


def test_the_script_names_lines_with_unusable_labels(
    folder: Path, fitted: TextClassifier, tmp_path: Path
) -> None:
    train = write_tsv(tmp_path / "train.tsv", [("a joy", "good"), ("a waste", "bad")])
    fitted.save(tmp_path / "numbered")
    for name, rows, flags, message in (
        ("train", [("a joy", "good"), ("a waste", "")], (), ":3: label is '': must be a name"),
        ("dev", [("a joy", "good"), ("a waste", "Bad")], (), ":3: label: 'Bad': must be"),
        ("dev", [("a joy", "0")], (), ":2: label: '0': must be"),
        (
            "train",
            [("a joy", "good")],
            ("--problem-type", "regression"),
            ":2: label is 'good': must be a number",
        ),
    ):
        file = write_tsv(tmp_path / f"bad_{name}.tsv", rows)
        files = {"train": train, "dev": train} | {name: file}
        done = run_script("finetune", folder, "--train", files["train"], "--dev", files["dev"], *flags)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"{file}{message}" in done.stderr
    done = run_script(
        "finetune", tmp_path / "numbered", "--train", train, "--dev", train, "--num-epochs", "1"
    )
    assert "the classes ('0', '1') are now called ('bad', 'good')" in done.stderr


def test_a_file_with_one_class_is_rejected(folder: Path, tmp_path: Path) -> None:
    train = write_tsv(tmp_path / "train.tsv", [("a joy", "good"), ("sweet", "good")])
    with pytest.raises(InputError, match=f"^{train}: every label is 'good': must have at least two classes"):
        finetune.main([str(folder), "--train", str(train), "--dev", str(train)], "mlm-jax finetune")


def test_labels_that_are_probably_numbers_are_reported(folder: Path, tmp_path: Path) -> None:
    train = write_tsv(tmp_path / "train.tsv", [("a joy", "1"), ("lovely", "1.0"), ("a waste", "0")])
    dev = write_tsv(tmp_path / "dev.tsv", [("a joy", "2")])
    done = run_script("finetune", folder, "--train", train, "--dev", dev)
    assert f"warning: {train}: labels '1' and '1.0' are the same number, but two classes" in done.stderr
    assert done.returncode == 2


def test_a_file_without_a_label_is_rejected(folder: Path, tmp_path: Path) -> None:
    train = write_tsv(tmp_path / "train.tsv", [("a joy", ""), ("sweet", ",")])
    flags = ["--train", str(train), "--dev", str(train), "--problem-type", "multi_label_classification"]
    with pytest.raises(InputError, match=f"^{train}: no text has a label: must have at least one name"):
        finetune.main([str(folder), *flags], "mlm-jax finetune")


def test_the_script_fits_several_labels_a_text(folder: Path, tmp_path: Path) -> None:
    train = write_tsv(tmp_path / "train.tsv", [("a joy", "joy, new"), ("a waste", "waste"), ("cold", "")])
    flags = (
        "--problem-type",
        "multi_label_classification",
        "--num-epochs",
        "1",
        "--output",
        tmp_path / "out",
    )
    done = run_script("finetune", folder, "--train", train, "--dev", train, *flags)
    assert "dev_micro_f1" in json.loads(done.stdout), done.stderr
    kept = TextClassifier.from_preset(tmp_path / "out")
    assert (kept.labels, kept.problem_type) == (("joy", "new", "waste"), "multi_label_classification")


def test_arguments_that_would_fail_later_are_refused(fitted: TextClassifier, folder: Path) -> None:
    with pytest.raises(InputError, match=r"^on_epoch: found str 'x': must be a function or None"):
        fitted.fit(TEXTS, LABELS, on_epoch="x")
    with pytest.raises(InputError, match=r"^params: tensor classifier/kernel has shape \(32, 2\)"):
        TextClassifier(fitted.config, fitted.params, fitted.tokenizer, ["a", "b", "c"])
    for labels, message in (
        ({"a", "b"}, "found a set"),
        ([1.5, None], "found None"),
        (None, "found None"),
    ):
        with pytest.raises(InputError, match=rf"^labels.*{message}"):
            TextClassifier(fitted.config, fitted.params, fitted.tokenizer, labels)
    assert TextClassifier(fitted.config, fitted.params, fitted.tokenizer, [1, 2]).labels == ("1", "2")
    parts = {"encoder": fitted.params["encoder"]}
    with pytest.raises(InputError, match=r"^params: .* missing"):
        TextClassifier(fitted.config, parts, fitted.tokenizer, ["a", "b"])
    with pytest.raises(InputError, match=r"^num_classes = '3': must be a whole number"):
        TextClassifier.from_preset(folder, num_classes="3")
    with pytest.raises(InputError, match=r"^a random classifier of this config needs .* GB of memory"):
        random_classifier(replace(fitted.config, hidden_dim=2**20), 10**6, 0)


def test_a_classifier_that_could_not_be_read_is_not_written(fitted: TextClassifier, tmp_path: Path) -> None:
    other = TextClassifier(fitted.config, fitted.params, fitted.tokenizer, ["a", "b"])
    other.labels = ("a", "b", "c")
    with pytest.raises(InputError, match=r"tensor classifier/\w+ has shape .*: the config requires .*3"):
        other.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_names_of_special_tokens_in_texts_are_told(fitted: TextClassifier) -> None:
    with pytest.warns(
        UserWarning, match=r"^texts: '\[SEP\]' in 'a joy \[SEP\] to see' is read as ordinary text"
    ):
        fitted.predict(["a joy", "a joy [SEP] to see"])
