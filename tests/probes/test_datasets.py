"""Published data sets of probes, and errors for damaged ones."""

import json
from pathlib import Path

import pytest

from mlm_jax.errors import InputError
from mlm_jax.probes.datasets import (
    CrowsPair,
    MinimalPair,
    PronounPair,
    read_crows_pairs,
    read_minimal_pairs,
    read_winobias,
)

COLUMNS = ",sent_more,sent_less,stereo_antistereo,bias_type,annotations,anon_writer,anon_annotators\n"
PRO = "1 [The cook] saw [the CEO] and thanked [her].\n"
ANTI = "1 [The cook] saw [the CEO] and thanked [him].\n"


def winobias(folder: Path, pro: str, anti: str) -> Path:
    (folder / "pro_stereotyped_type1.txt.dev").write_text(pro)
    (folder / "anti_stereotyped_type1.txt.dev").write_text(anti)
    return folder


def test_crows_pairs(tmp_path: Path) -> None:
    file = tmp_path / "crows.csv"
    line = '0,"He said, ""loudly"", no.","She said, ""loudly"", no.",stereo,gender,"[[\'gender\']]",a0,"[a1, a2]"\n'
    file.write_text(COLUMNS + line)
    assert read_crows_pairs(file) == [
        CrowsPair('He said, "loudly", no.', 'She said, "loudly", no.', "stereo", "gender")
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n", "no column sent_more: must have sent_more, sent_less"),
        (COLUMNS, "no pair: must have"),
        (f"{COLUMNS}\n0,a,b,both,x\n", "3: stereo_antistereo is 'both': must be stereo or antistereo"),
        (f"{COLUMNS}0,a,b,stereo,x\n1,a\n", "3: sent_less is empty"),
        (f'{COLUMNS}0,"a,b,stereo,x\n1,a,b,stereo,x\n', "2: not valid CSV: unexpected end of data"),
        (f'{COLUMNS}0,"{"a" * 200_000},b,stereo,x\n', "2: not valid CSV: field larger than field limit"),
        (b"\xff\xfe", "invalid UTF-8 at byte 0"),
    ],
)
def test_damaged_crows_pairs_are_rejected(tmp_path: Path, content: str | bytes, message: str) -> None:
    file = tmp_path / "crows.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as error:
        read_crows_pairs(file)
    assert str(error.value).startswith(str(file))
    assert message in str(error.value)


def test_minimal_pairs(tmp_path: Path) -> None:
    file = tmp_path / "agreement.jsonl"
    records = [
        {"sentence_good": "a", "sentence_bad": "b", "UID": "u", "field": "syntax"},
        {"sentence_good": "c", "sentence_bad": "d"},
    ]
    file.write_text("\n".join(json.dumps(record) for record in records))
    expected = [MinimalPair("a", "b", "u"), MinimalPair("c", "d", "agreement")]
    assert read_minimal_pairs(file) == expected
    # Some editors add a byte order mark.
    file.write_bytes("\ufeff".encode() + file.read_bytes())
    assert read_minimal_pairs(file) == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "no string sentence_good: must have sentence_good and sentence_bad"),
        ('{"sentence_good": "a", "sentence_bad": 3}', "no string sentence_bad"),
        # The score of no tokens is 0, which no sentence exceeds.
        ('{"sentence_good": " ", "sentence_bad": "b"}', "sentence_good is empty"),
    ],
)
def test_damaged_minimal_pairs_are_rejected(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "agreement.jsonl"
    file.write_text(f'{{"sentence_good": "a", "sentence_bad": "b"}}\n\n{line}\n')
    with pytest.raises(InputError) as error:
        read_minimal_pairs(file)
    assert str(error.value).startswith(f"{file}:3: {message}")


def test_missing_files_and_folders_are_rejected(tmp_path: Path) -> None:
    for read in (read_crows_pairs, read_minimal_pairs):
        with pytest.raises(InputError, match="no such file"):
            read(tmp_path / "none")
        with pytest.raises(InputError, match="is a folder: must be a file"):
            read(tmp_path)
    with pytest.raises(InputError, match="no WinoBias files: must contain pro_stereotyped_type1"):
        read_winobias(tmp_path)
    winobias(tmp_path, PRO, ANTI)
    (tmp_path / "anti_stereotyped_type1.txt.dev").unlink()
    with pytest.raises(InputError, match=r"anti_stereotyped_type1\.txt\.dev: no such file"):
        read_winobias(tmp_path)


def test_winobias(tmp_path: Path) -> None:
    assert read_winobias(winobias(tmp_path, PRO, ANTI)) == [
        PronounPair("The cook saw the CEO and thanked [MASK].", "her", "him", "type 1")
    ]
    # Both pronouns of a person are masked. The probe asks for the first.
    pro = "7 The clerk told [the cook] that [She] is free and thanked [her].\n"
    (pair,) = read_winobias(
        winobias(tmp_path, pro, pro.replace("She", "he").replace("thanked [her]", "thanked [him]"))
    )
    assert pair == PronounPair(
        "The clerk told the cook that [MASK] is free and thanked [MASK].", "she", "he", "type 1"
    )


@pytest.mark.parametrize(
    ("pro", "anti", "message"),
    [
        (PRO + "2 [The cook] ran.\n", ANTI, "2: no pronoun in brackets"),
        (PRO + PRO, ANTI, ": 2 lines: must be 1, as in anti_stereotyped_type1.txt.dev"),
        (PRO, PRO, "1: 'her' is also in anti_stereotyped_type1.txt.dev"),
        # One file lost a line and has another one at its end.
        (PRO, "2 The nurse asked [a guard] for [his] keys.\n", "1: must match the sentence at anti_stereo"),
    ],
)
def test_damaged_winobias_is_rejected(tmp_path: Path, pro: str, anti: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        read_winobias(winobias(tmp_path, pro, anti))
    assert str(error.value).startswith(str(tmp_path / "pro_stereotyped_type1.txt.dev"))
    assert message in str(error.value)


def test_published_winobias(shared_data: Path) -> None:
    pairs = read_winobias(shared_data / "probes" / "winobias")
    assert len(pairs) == 792
    assert all("[MASK]" in pair.text and "[" not in pair.text.replace("[MASK]", "") for pair in pairs)
    assert {frozenset((pair.pro, pair.anti)) for pair in pairs} <= {
        frozenset(names)
        for names in (("he", "she"), ("his", "her"), ("him", "her"), ("he", "her"), ("him", "she"))
    }
