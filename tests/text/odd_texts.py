"""Texts for comparisons of tokenizers: thousands of lines of real text, and strings that few people write."""

from pathlib import Path

import numpy as np
import zstandard

from mlm_jax.files.json_files import parse_json

CORPORA = ("wiki-en-valid", "gesetze-de", "wiki-zh", "medquad")
# Letters, marks, symbols, numbers of several scripts, spaces of all kinds, control characters, specials in part.
_RANGES = [(32, 127), (0xA0, 0x250), (0x300, 0x370), (0x370, 0x600), (0x900, 0x980), (0x2000, 0x2070)]
_RANGES += [(0x2460, 0x2500), (0x2581, 0x2582), (0x3000, 0x3040), (0x4E00, 0x5000), (0xFB00, 0xFB10)]
_RANGES += [
    (0xFF00, 0xFF60),
    (0x1F300, 0x1F600),
    (0, 32),
    (0xE000, 0xE010),
    (0x1D400, 0x1D440),
    (0xAC00, 0xAD00),
]
_PARTS = [
    " ",
    "  ",
    "   ",
    "\n",
    "\n\n",
    "\t",
    " \n ",
    "\r\n",
    "'s",
    "'ll",
    "don't",
    "``",
    "''",
    "▁",
    "▁▁",
    "##a",
]
_PARTS += [
    "<s>",
    "</s>",
    "<mask>",
    "[MASK]",
    "[CLS]",
    "<pad>",
    "<unk>",
    "[UNK]",
    "<s>NOTUSED",
    "#",
    "Ġ",
    "Ċ",
    "İ",
]
_PARTS += [
    "1,000",
    "3.14",
    "...",
    "e\u0301",
    "ﬁ",
    "½",
    "①",
    "\u200b",
    "\u00a0",
    "\ufffd",
    "\u0085",
    "\x1c",
    "a" * 120,
]
_PARTS += [
    "the",
    "Lake",
    "MKTAYIAKQR",
    "ACGTAC",
    "naïve",
    "Straße",
    "東京",
    "한국어",
    "हिन्दी",
    "😀👍🏽",
    "x",
    "Y",
]


def odd_texts(count: int, seed: int = 0) -> list[str]:
    """Returns random strings without lone surrogates."""
    random = np.random.default_rng(seed)

    def part() -> str:
        if random.random() < 0.5:
            return str(_PARTS[random.integers(len(_PARTS))])
        first, last = _RANGES[random.integers(len(_RANGES))]
        return "".join(map(chr, random.integers(first, last, random.integers(1, 6))))

    return ["".join(part() for _ in range(random.integers(1, 13))) for _ in range(count)]


def real_texts(shared_data: Path, count: int, characters: int = 400) -> list[str]:
    """Returns the beginnings of lines of English, German, Chinese and medical texts, as many of each."""
    texts: list[str] = []
    for name in CORPORA:
        lines: list[str] = []
        with zstandard.open(shared_data / f"corpora/{name}.jsonl.zst", "rt", encoding="utf-8") as file:
            while len(lines) < count // len(CORPORA):
                content = parse_json(file.readline(), name)
                text = next(
                    value for value in (content.get("text"), *content.values()) if isinstance(value, str)
                )
                lines += [text[start : start + characters] for start in range(0, len(text), characters)]
        texts += lines[: count // len(CORPORA)]
    return texts
