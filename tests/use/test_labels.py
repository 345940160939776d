"""Labels as users give them: names win over positions, nothing is rounded, and errors name the label."""

import time
from enum import Enum, IntEnum
from typing import Any

import numpy as np
import pytest

from mlm_jax.errors import InputError
from mlm_jax.use.labels import class_names, class_targets, label_matrix, listed, value_matrix


class Mood(str, Enum):  # noqa: UP042 - people write it
    """The str of its members is "Mood.low"."""

    low = "bad"
    high = "good"


class Grade(IntEnum):
    low = 2
    high = 0


def where(index: int) -> str:
    return f"label {index}"


@pytest.mark.parametrize(
    ("names", "labels", "targets"),
    [
        # Names that are numbers are never positions.
        (["1", "2", "3"], [1, 2, 3, "3"], [0, 1, 2, 2]),
        (["3", "1", "2"], [1, 2, 3], [1, 2, 0]),
        (["-1", "0", "1"], [-1, 0, 1], [0, 1, 2]),
        (["10", "2"], [2.0, np.float32(10)], [1, 0]),
        (["0.5", "1.5"], [1.5, "0.5"], [1, 0]),
        (["1.0", "2.0"], [2.0, 1.0], [1, 0]),
        (["bad", "good"], [1, "bad", np.int64(0), np.str_("good")], [1, 0, 0, 1]),
        (["LABEL_0", "LABEL_1"], [0, 1], [0, 1]),
        (["True", "False"], [True, False, np.bool_(True)], [0, 1, 0]),
        (["0", "1"], [True, False, 1], [1, 0, 1]),
        (["bad", "good"], [Mood.high, Mood.low, Grade.high], [1, 0, 0]),
        (["0", "2"], [Grade.low, Grade.high], [1, 0]),
        # Only Python reads 1_0 as a number.
        (["1_0", "2_0"], [1, 0], [1, 0]),
    ],
)
def test_names_win_over_positions(names: list[str], labels: list[Any], targets: list[int]) -> None:
    assert class_targets(labels, names, where).tolist() == targets


@pytest.mark.parametrize(
    ("names", "label", "message"),
    [
        (["1", "2", "3"], 0, r"label 1: 0: must be one of \('1', '2', '3'\)"),
        (["1", "2", "3"], 4, "label 1: 4: must be one of"),
        (["True", "False"], 1, "label 1: 1: must be one of"),
        (["bad", "good"], 2, r"label 1: 2: must be a number below 2 or one of \('bad', 'good'\)"),
        (["bad", "good"], -1, "label 1: -1: must be"),
        # As a position, True would be "no".
        (["yes", "no"], True, r"label 1: True: must be one of \('yes', 'no'\)"),
        (["yes", "no"], np.bool_(False), "label 1: False: must be one of"),
        (["bad", "good"], 10**400, "label 1: 10+: must be a number below 2"),
        (["bad", "good"], 0.4, "label 1: 0.4: must be .*; problem_type='regression' fits numbers"),
        (["bad", "good"], float("nan"), "label 1: nan: must be a number below"),
        (["bad", "good"], float("inf"), "label 1: inf: must be"),
        (["bad", "good"], "Good", "label 1: 'Good': must be"),
        (["bad", "good"], None, "label 1: found None: must be the name or number of a class"),
        (["bad", "good"], b"good", "label 1: found bytes b'good'"),
        (["bad", "good"], ["good"], "label 1: found list"),
        (["bad", "good"], {"label": 1}, "label 1: found dict"),
        (["bad", "good"], 1j, "label 1: found complex"),
        (["same", "same"], "same", "label 1: 'same': must be"),
    ],
)
def test_other_labels_are_rejected(names: list[str], label: Any, message: str) -> None:
    first = names[0] if names[0] != names[1] else 0
    with pytest.raises(InputError, match=f"^{message}"):
        class_targets([first, label], names, where)


def test_several_labels_are_names_or_numbers() -> None:
    names = ["0", "1", "toxic"]
    labels = [["toxic", "0"], [], [0, 1, 0.5], {"1"}, np.array([1, 0, 0]), (True, False, True)]
    expected = [[1, 0, 1], [0, 0, 0], [0, 1, 0.5], [0, 1, 0], [1, 0, 0], [1, 0, 1]]
    found = label_matrix(labels, names, where)
    assert found.dtype == np.float32
    assert found.tolist() == expected
    assert label_matrix([0.25, True, [1]], ["relevant"], where).tolist() == [[0.25], [1], [1]]
    bad: list[Any] = [
        "toxic",
        1,
        None,
        ["other"],
        [0, 1],
        [0, 1, 2],
        [0, 1, "toxic"],
        [0, 1, float("nan")],
        [0, 1, 10**400],
        {0, 1, 2},
    ]
    for label in bad:
        with pytest.raises(InputError, match=r"^label 1: .*must be a list of names of"):
            label_matrix([[], label], names, where)
    with pytest.raises(
        InputError, match=r"^label 0: found float 1.5: .*; problem_type='regression' fits other"
    ):
        label_matrix([1.5], ["relevant"], where)
    assert label_matrix([[], ["relevant"]], ["relevant"], where).tolist() == [[0], [1]]
    for label in (1.5, "relevant", None, [0, 1]):
        with pytest.raises(InputError, match=r"^label 1: "):
            label_matrix([1, label], ["relevant"], where)


def test_values_are_finite_numbers() -> None:
    assert value_matrix([0.5, 3, np.float64(-1), [2]], ["0"], where).tolist() == [[0.5], [3], [-1], [2]]
    assert value_matrix(np.array([[1, 2], [3, 4]]), ["a", "b"], where).tolist() == [[1, 2], [3, 4]]
    for label in (None, "3.5", True, float("nan"), float("inf"), 1e300, [1, 2], {"score": 1}):
        with pytest.raises(InputError, match=r"^label 1: found .*: must be a finite number"):
            value_matrix([1, label], ["0"], where)
    with pytest.raises(InputError, match=r"^label 0: found int 1: must be 2 finite numbers"):
        value_matrix([1], ["a", "b"], where)


def test_names_of_classes() -> None:
    assert class_names([1, 2, "three", True, 0.5]) == ("1", "2", "three", "True", "0.5")
    assert class_names(np.array(["b", "a"])) == ("b", "a")
    assert class_names([*Mood, Grade.low]) == ("bad", "good", "2")
    assert class_names([np.int64(1), np.bool_(False), np.str_("a")]) == ("1", "False", "a")
    for labels, message in (
        (["a", None], r"labels\[1\]: found None: must be a name"),
        (["a", b"b"], r"labels\[1\]: found bytes"),
        (["a", ""], r"labels\[1\]: found str ''"),
        (["a", "a"], r"labels\[1\]: 'a': is given twice"),
        ([1, "1"], r"labels\[1\]: '1': is given twice"),
        ("ab", "labels: found str 'ab': must be a list"),
        ([], "labels: must be a list of at least one"),
    ):
        with pytest.raises(InputError, match=message):
            class_names(labels)


def test_lists_of_any_kind() -> None:
    class Series:
        """An array of pandas as far as it matters here."""

        ndim = 1

        def __iter__(self) -> Any:
            return iter(self.tolist())

        def tolist(self) -> list[int]:
            return [1, 2]

    class Table:
        """A table of pandas, which iterates over the names of its columns."""

        ndim = 2

        def __iter__(self) -> Any:
            return iter(["text", "label"])

    for values in ([1, 2], (1, 2), np.array([1, 2]), Series(), iter([1, 2]), {1: "a", 2: "b"}.values()):
        assert len(listed(values, "labels")) == 2
    assert type(listed(np.array([1, 2]), "labels")[0]) is int
    for values in ("ab", b"ab", {"a": 1}, {1, 2}, Table(), 3, None, np.array(3), [], np.array([])):
        with pytest.raises(InputError, match=r"^labels: .*must be a list"):
            listed(values, "labels")


def test_many_classes_take_no_time_of_their_square() -> None:
    """Comparing each of 20,000 names with all others took 16 seconds."""
    names = class_names([f"name {number}" for number in range(20_000)])
    start = time.perf_counter()
    assert class_targets(names, names, str).tolist() == list(range(20_000))
    assert time.perf_counter() - start < 2
