"""Features of texts, streamed to a file that is complete or absent."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

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
    with pytest.raises(InputError, match="texts 10 to 11: text 1: has"):
        extract_features(model, ["a place"] * 11 + ["a place " * 30], output)
    with pytest.raises(InputError, match="no text: must be"):
        extract_features(model, [], output)
    with pytest.raises(InputError, match=r"must end in \.npz or \.parquet"):
        extract_features(model, TEXTS, tmp_path / "features.txt")
    assert list(tmp_path.iterdir()) == []


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
