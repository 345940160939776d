"""The demo text has enough distinct sentences and the facts, but not the sentence that the demo asks for."""

import re
from importlib.resources import files

import pytest

DEMO_ANSWER = "The Statue of Liberty is in New York."


def normalize(text: str) -> str:
    """Lowercase words with single spaces, without punctuation."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return files("mlm_jax.demo").joinpath("landmarks.txt").read_text(encoding="utf-8").splitlines()


def test_at_least_300_sentences_one_per_line(lines: list[str]) -> None:
    assert len(lines) >= 300
    malformed = [line for line in lines if not re.fullmatch(r"[A-Z][ -~]*\.", line)]
    assert malformed == []


def test_plain_ascii_with_single_spaces(lines: list[str]) -> None:
    assert [line for line in lines if not line.isascii() or line != " ".join(line.split())] == []


def test_no_sentence_occurs_twice(lines: list[str]) -> None:
    assert len({normalize(line) for line in lines}) == len(lines)


def test_the_demo_answer_is_not_in_the_text(lines: list[str]) -> None:
    answer = normalize(DEMO_ANSWER)
    assert [line for line in lines if answer in normalize(line)] == []
    assert answer not in normalize(" ".join(lines))


def test_the_facts_are_in_the_text_in_other_words(lines: list[str]) -> None:
    sentences = [normalize(line) for line in lines]
    about_the_statue = [sentence for sentence in sentences if "statue of liberty" in sentence]
    assert len(about_the_statue) >= 12
    assert any("new york" in sentence for sentence in about_the_statue)
    assert sum(sentence.endswith("is in new york") for sentence in sentences) >= 5
