"""Features of texts, streamed to a file that is complete or absent."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlm_jax.commands import features
from mlm_jax.errors import InputError
from mlm_jax.use import features_file
from mlm_jax.use.features_file import extract_features
from mlm_jax.use.inference import Pooling
from mlm_jax.use.masked_lm import MaskedLM
from tests.run_small import documents, run_script, uninterrupted


@pytest.fixture(scope="module")
def model() -> MaskedLM:
    return MaskedLM.from_preset(uninterrupted())


TEXTS = [text[:30] for text in documents()[:25]]


@pytest.mark.parametrize("pooling", ["mean", "cls", "none"])
@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_files_hold_the_models_features(
    model: MaskedLM, pooling: Pooling, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features_file, "_TEXTS_AT_ONCE", 10)
    output = tmp_path / f"features.{ending}"
    assert extract_features(model, iter(TEXTS), output, layers=1, pooling=pooling, truncate=True) == 25
    expected = model.features(TEXTS, layers=1, pooling=pooling, truncate=True)
    if ending == "parquet":
        found = pq.read_table(output)["features"].to_pylist()
        for given, array in zip(found, expected, strict=True):
            np.testing.assert_allclose(given, array, atol=1e-5)
    else:
        with np.load(output) as saved:
            assert saved["features"].dtype == np.float32
            parts = saved["features"]
            if pooling == "none":
                assert saved["offsets"].dtype == np.int64
                parts = np.split(parts, saved["offsets"][1:-1])
            for given, array in zip(parts, expected, strict=True):
                np.testing.assert_allclose(given, array, atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == [output.name]


@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_a_failure_leaves_no_file(
    model: MaskedLM, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features_file, "_TEXTS_AT_ONCE", 10)
    output = tmp_path / f"features.{ending}"

    def broken() -> Iterator[str]:
        yield from ["a place"] * 15
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        extract_features(model, broken(), output)
    with pytest.raises(InputError, match=r"^text 11: has"):
        extract_features(model, ["a place"] * 11 + ["a place " * 30], output)
    with pytest.raises(InputError, match=r"^layers = 9: must be in"):
        extract_features(model, TEXTS, output, layers=9)
    with pytest.raises(InputError, match=r"^texts: found str 'a place': must be a list"):
        extract_features(model, "a place", output)
    with pytest.raises(InputError, match=r"^texts: found set \{'a place'\}: must be a list"):
        extract_features(model, {"a place"}, output)
    with pytest.raises(InputError, match="no text: must be"):
        extract_features(model, [], output)
    with pytest.raises(InputError, match=r"must end in \.npz or \.parquet"):
        extract_features(model, TEXTS, tmp_path / "features.txt")
    with pytest.raises(InputError, match=r"^layers = 9: must be in"):
        extract_features(model, TEXTS, tmp_path / "new" / "folder" / f"features.{ending}", layers=9)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_several_layers_and_ids(
    model: MaskedLM, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features_file, "_TEXTS_AT_ONCE", 10)
    output = tmp_path / f"features.{ending}"
    for pooling, shape in (("max", (25, 2, 16)), ("none", (2, 16))):
        extract_features(model, TEXTS, output, layers=[0, -1], pooling=pooling, truncate=True)
        expected = model.features(TEXTS, layers=[0, -1], pooling=pooling, truncate=True)
        if ending == "parquet":
            table = pq.read_table(output)
            assert table["id"].to_pylist() == list(range(25))
            found = [np.array(row) for row in table["features"].to_pylist()]
        else:
            with np.load(output) as saved:
                assert saved["features"].shape[-len(shape) :] == shape
                offsets = saved["offsets"][1:-1] if pooling == "none" else 25
                found = np.split(saved["features"], offsets)
                found = found if pooling == "none" else [row[0] for row in found]
        for given, array in zip(found, expected, strict=True):
            np.testing.assert_allclose(given, array, atol=1e-5)


def test_layers_and_outputs_of_other_types(model: MaskedLM, tmp_path: Path) -> None:
    """Layers as an array once wrote two vectors per text into a file whose header announced one."""
    expected = model.features(TEXTS, layers=[-1, -2], pooling="mean", truncate=True)
    for layers in (np.array([-1, -2]), range(-1, -3, -1), (np.int64(-1), -2)):
        extract_features(model, TEXTS, str(tmp_path / "out.npz"), layers=layers, truncate=True)
        np.testing.assert_allclose(np.load(tmp_path / "out.npz")["features"], expected, atol=1e-5)
    extract_features(model, TEXTS, tmp_path / "out.npz", layers=np.int64(-1), truncate=True)
    np.testing.assert_allclose(np.load(tmp_path / "out.npz")["features"], expected[:, 0], atol=1e-5)


def test_options_of_reading_are_arguments(model: MaskedLM, tmp_path: Path) -> None:
    texts, output = tmp_path / "texts.log", tmp_path / "out.npz"
    texts.write_text('{"text": "a lake"}\n\n')
    command = [str(uninterrupted()), str(texts), "--output", str(output)]
    with pytest.raises(InputError, match=r"texts\.log: .*--format"):
        features.main(command, "mlm-jax features")
    features.main([*command, "--format", "jsonl"], "mlm-jax features")
    expected = model.features(["a lake", ""], pooling="mean")
    np.testing.assert_allclose(np.load(output)["features"], expected, atol=1e-5)
    texts.write_bytes(b"a lake\n\xff\n")
    with pytest.raises(InputError, match=r"texts\.log:2: invalid UTF-8"):
        features.main([*command, "--format", "txt"], "mlm-jax features")
    features.main([*command, "--format", "txt", "--errors", "replace"], "mlm-jax features")
    assert len(np.load(output)["features"]) == 2


def test_the_texts_are_not_replaced_by_their_features(tmp_path: Path) -> None:
    texts, link = tmp_path / "texts.parquet", tmp_path / "link.parquet"
    pq.write_table(pa.table({"text": ["a lake"]}), texts)
    link.symlink_to(texts)
    for given in (texts, tmp_path, link):
        with pytest.raises(InputError, match=r"texts\.parquet: is a file of the texts; choose another file"):
            features.main([str(uninterrupted()), str(given), "--output", str(texts)], "mlm-jax features")
    assert pq.read_table(texts).column_names == ["text"]


EMPTY = {
    "txt": "a lake\n\n \na river",
    "jsonl": '{"text": "a lake"}\n{"text": null}\n\n{"text": "a river"}\n',
    "parquet": ["a lake", None, "", "a river"],
}


@pytest.mark.parametrize("ending", EMPTY)
def test_every_line_has_its_vector(model: MaskedLM, ending: str, tmp_path: Path) -> None:
    texts, output = tmp_path / f"texts.{ending}", tmp_path / "features.npz"
    if ending == "parquet":
        pq.write_table(pa.table({"text": EMPTY[ending]}), texts)
    else:
        texts.write_text(EMPTY[ending])
    done = run_script("extract_features", uninterrupted(), texts, "--output", output, "--layers", "0", "-1")
    assert (done.returncode, done.stdout) == (0, f"{output}: features of 4 texts\n"), done.stderr
    assert "2 of 4 texts have no tokens, the first is text 1 (from 0)" in done.stderr
    expected = model.features(["a lake", "", "", "a river"], layers=[0, -1], pooling="mean")
    np.testing.assert_allclose(np.load(output)["features"], expected, atol=1e-5)


def test_the_script(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("\n".join(TEXTS))
    done = run_script(
        "extract_features",
        uninterrupted(),
        tmp_path / "in.txt",
        "--output",
        tmp_path / "out.npz",
        "--truncate",
    )
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "out.npz")["features"].shape == (25, 16)
    missing = run_script(
        "extract_features", uninterrupted(), tmp_path / "none.txt", "--output", tmp_path / "o.npz"
    )
    assert (missing.returncode, missing.stdout) == (2, "")


def test_texts_that_say_nothing_are_reported_once(
    model: MaskedLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Zero-width characters are no tokens, and many chunks of unknown words are one warning."""
    monkeypatch.setattr(features_file, "_TEXTS_AT_ONCE", 2)
    texts = ["a lake", "\u200b\u200d", "\ufeff", "東京", "a river", "東京", "京都"]
    with pytest.warns(UserWarning, match="^texts: ") as warned:
        assert extract_features(model, texts, tmp_path / "features.npz") == 7
    assert capsys.readouterr().err.startswith("2 of 7 texts have no tokens, the first is text 1 (from 0)")
    (warning,) = [str(warning.message) for warning in warned]
    assert re.match(
        r"texts: \d\d\.\d% of the tokens are unknown \(\[UNK\]\), such as '東京', '京都'; ", warning
    )
