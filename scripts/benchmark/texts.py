"""Texts that share rows, compared with a text per row, for features, predictions and fine-tuning."""

from pathlib import Path

from scripts.benchmark.contest import Contestant, compete
from scripts.benchmark.table import Table

_TASKS = ("features", "predict", "fit")


def measure_texts(texts: Path, tokenizer: Path, preset: str, *, num_texts: int, rounds: int) -> list[Table]:
    """Returns the table of a file of labeled texts.

    Raises:
        RunError: a contestant fails, such as by texts or a tokenizer that cannot be read.
    """
    settings = {"texts": str(texts), "tokenizer": str(tokenizer), "preset": preset, "num_texts": num_texts}
    rows = []
    for task in _TASKS:
        padded, packed = compete(
            [
                Contestant(name, "scripts.benchmark.ours.texts", settings | {"task": task, "packed": packed})
                for name, packed in (("a text per row", False), ("several texts per row", True))
            ],
            rounds=rounds,
        )
        for result in (padded, packed):
            about = result.about
            ratio = None if result is padded else packed.ratio_to(padded)
            rows.append((task, result.name, about["real_share"], about["shapes"], result.rate, ratio))
    columns = ("work", "rows", "real tokens", "compiled shapes", "real tokens/s", "speedup")
    return [Table(f"{texts.name}, {num_texts} texts, {preset}", columns, rows)]
