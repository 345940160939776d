"""Labeled texts in TSV files."""

from pathlib import Path

import pytest

from mlm_jax.errors import InputError
from mlm_jax.use.labeled_text import LabeledTexts, read_labeled_texts


def test_files_of_glue(tmp_path: Path) -> None:
    file = tmp_path / "train.tsv"
    file.write_text('\ufeffsentence\tlabel\na "quoted film\t1\n\ndull \t0\n')
    found = read_labeled_texts(file)
    assert (list(found.texts), list(found.labels)) == (['a "quoted film', "dull "], ["1", "0"])
    assert found.where(1) == f"{file}:4: label"
    file.write_text("index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n")
    assert list(read_labeled_texts(file).texts) == [("a", "b")]
    for content, message in (
        ("words\tlabel\na\t1\n", "must have label and sentence"),
        ("sentence\tlabel\na\n", r"train\.tsv:2: 1 fields: must be 2"),
        ("sentence\tlabel\n", "no line after the header"),
        ("sentence\tlabel\tlabel\na\t1\t0\n", "header sentence, label, label: must have label once"),
        ("sentence\tlabel\tsentence\na\t1\tb\n", "must have sentence once"),
    ):
        file.write_text(content)
        with pytest.raises(InputError, match=message):
            read_labeled_texts(file)
    with pytest.raises(InputError, match="no such file"):
        read_labeled_texts(tmp_path / "none.tsv")
    with pytest.raises(InputError, match=f"^{tmp_path}: Is a directory: must be a tab-separated file"):
        read_labeled_texts(tmp_path)


def test_labels_of_each_problem_type() -> None:
    def labels(*written: str) -> LabeledTexts:
        return LabeledTexts(Path("f.tsv"), ["text"] * len(written), written, range(2, 2 + len(written)))

    assert labels("1", "2.0", "1e1", "x").first_fraction is None
    assert labels("1", "nan", "2.5").first_fraction == "2.5"
    assert labels("good", "1", "0", "1", "nan", "inf", "a,b", "1,2,3").doubt is None
    assert (
        labels("1", '"0"').doubt
        == "label '\"0\"' is read with its quotation marks: the file must have no quoting"
    )
    assert labels("1", "0,5").doubt == "label '0,5' is read as a name: must have a point to be a number"
    for one, other in (("1", "1.0"), ("01", "1"), ("1e0", "1")):
        doubt = f"labels {one!r} and {other!r} are the same number, but two classes"
        assert labels("0", one, other).doubt == doubt
    assert labels("1.0", "a").parsed_as("single_label_classification", None).labels == ["1.0", "a"]
    assert labels("1.5", "-2").parsed_as("regression", 1).labels == [1.5, -2.0]
    assert labels("a, b", "", "b,").parsed_as("multi_label_classification", 2).labels == [
        ["a", "b"],
        [],
        ["b"],
    ]
    assert labels("0.5").parsed_as("multi_label_classification", 1).labels == [0.5]
    assert labels("", "a").parsed_as("multi_label_classification", 1).labels == [[], ["a"]]
    for first, place in (("0.5", 3), ("", 2)):
        with pytest.raises(InputError, match=f"f.tsv:{place}: label is '': must be a number"):
            labels(first, "").parsed_as("multi_label_classification", 1)
    assert labels("1", "2_5").first_fraction is None
    with pytest.raises(InputError, match=r"f\.tsv:3: label is '2_5': must be a number"):
        labels("1.5", "2_5").parsed_as("regression", 1)
    for problem, label in (("single_label_classification", ""), ("regression", "nan"), ("regression", "")):
        with pytest.raises(InputError, match=f"f.tsv:3: label is '{label}': must be a"):
            labels("1.5", label).parsed_as(problem, None)


def test_fields_that_look_quoted_are_reported_once(tmp_path: Path) -> None:
    file = tmp_path / "train.tsv"
    file.write_text('label\tsentence\n1\t"plain"\n0\t"He said ""a"""\n0\t"She said ""b"""\n')
    with pytest.warns(UserWarning, match=rf"^{file}:3: column 'sentence' looks quoted as in CSV") as warned:
        assert read_labeled_texts(file).texts[1] == '"He said ""a"""'
    assert len(warned) == 1
