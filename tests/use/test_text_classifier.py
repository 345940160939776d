"""TextClassifier: fits, keeps its best epoch, predicts, and reports errors."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from mlm_jax.config import BertConfig
from mlm_jax.errors import InputError
from mlm_jax.files.atomic import new_folder
from mlm_jax.formats.model_folder import random_model, write_model_folder
from mlm_jax.text.tokenizer import Tokenizer
from mlm_jax.use.labeled_text import read_labeled_texts
from mlm_jax.use.masked_lm import MaskedLM
from mlm_jax.use.text_classifier import TextClassifier
from tests.run_small import run_script

GOOD = ["a lovely film", "sweet and funny", "what a joy to see", "lovely and sweet", "a joy"]
BAD = ["a dull film", "cold and empty", "what a waste of time", "dull and cold", "a waste"]
TEXTS = (GOOD + BAD) * 6
LABELS = ([1] * 5 + [0] * 5) * 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked LM without a pooler, as after a training run."""
    tokenizer = Tokenizer.train(TEXTS, 150)
    config = BertConfig(
        vocabulary_size=tokenizer.vocabulary_size,
        num_layers=1,
        hidden_dim=32,
        num_heads=2,
        intermediate_dim=64,
        max_sequence_length=24,
        pooler=False,
    )
    path = tmp_path_factory.mktemp("models") / "masked_lm"
    with new_folder(path) as partial:
        write_model_folder(partial, random_model(config, tokenizer, 0))
    return path


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
    for order in (None, (0, 0), (0, 1), (1, 0)):
        taken = np.concatenate([b.labels[b.weights > 0] for b in fitted._batches(rows, numbers, 16, order)])
        np.testing.assert_array_equal(np.sort(taken), numbers)
        orders.append(tuple(taken))
    assert len(set(orders)) == 4


def test_errors_name_the_text_label_or_setting(fitted: TextClassifier) -> None:
    with pytest.raises(InputError, match="label 1: 2: must be a number below 2"):
        fitted.fit(GOOD[:2], [0, 2])
    with pytest.raises(InputError, match="label 0: 'good': must be"):
        fitted.evaluate(GOOD[:1], ["good"])
    with pytest.raises(InputError, match="1 labels: must be one for each of 2 texts"):
        fitted.evaluate(GOOD[:2], [1])
    with pytest.raises(InputError, match="text 0: must be a string or a pair"):
        fitted.predict([("a", "b", "c")])  # type: ignore[list-item]
    with pytest.raises(InputError, match="at least one string"):
        fitted.predict([])
    with pytest.raises(InputError, match="num_epochs = 0"):
        fitted.fit(GOOD, [1] * 5, num_epochs=0)


def test_labeled_files(tmp_path: Path) -> None:
    file = tmp_path / "train.tsv"
    file.write_text('sentence\tlabel\na "quoted film\t1\n\ndull \t0\n')
    found = read_labeled_texts(file)
    assert (list(found.texts), list(found.labels)) == (['a "quoted film', "dull "], ["1", "0"])
    file.write_text("index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n")
    assert list(read_labeled_texts(file).texts) == [("a", "b")]
    for content, message in (
        ("words\tlabel\na\t1\n", "must have label and sentence"),
        ("sentence\tlabel\na\n", r"train\.tsv:2: 1 fields: must be 2"),
        ("sentence\tlabel\n", "no line after the header"),
    ):
        file.write_text(content)
        with pytest.raises(InputError, match=message):
            read_labeled_texts(file)
    with pytest.raises(InputError, match="no such file"):
        read_labeled_texts(tmp_path / "none.tsv")


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
    assert len(printed["dev_accuracies"]) == 4
    assert printed["dev_accuracy"] == max(printed["dev_accuracies"])
    assert "epoch 4: loss" in done.stderr
    kept = TextClassifier.from_preset(tmp_path / "out")
    assert kept.labels == ("0", "1")
    assert kept.evaluate(TEXTS, [str(label) for label in LABELS]).accuracy == printed["dev_accuracy"]
    again = run_script("finetune", folder, *arguments, "--output", tmp_path / "out")
    assert (again.returncode, again.stdout) == (2, "")
    assert "already exists" in again.stderr
