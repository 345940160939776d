"""Tables of results as Markdown and JSON, with the machine and the versions of the measurement."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mlm_jax.run.machine import Machine
from scripts.benchmark.contest import Result

Cell = str | float | None


@dataclass(frozen=True)
class Table:
    """Rows of results; column names include units."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[Cell, ...]]

    def as_markdown(self) -> str:
        """Returns a heading and the table, with three significant digits and a dash for a missing value."""
        lines = [self.columns, tuple("---" for _ in self.columns), *self.rows]
        return f"### {self.title}\n\n" + "\n".join(
            f"| {' | '.join(_shown(cell) for cell in line)} |" for line in lines
        )

    def as_json(self) -> dict[str, Any]:
        """Returns the values with all digits, one object per row."""
        return {
            "title": self.title,
            "rows": [dict(zip(self.columns, row, strict=True)) for row in self.rows],
        }


def compare(title: str, unit: str, results: Sequence[Result]) -> Table:
    """Returns a table of rates, with the speed of the first contestant (ours) relative to each other contestant."""
    ours = results[0]
    return Table(
        title,
        ("library", "version", f"{unit}/s", f"speedup of {ours.name}"),
        [
            (other.name, other.about["version"], other.rate, None if other is ours else ours.ratio_to(other))
            for other in results
        ],
    )


def report(tables: Sequence[Table], machine: Machine) -> dict[str, Any]:
    """Returns everything as one JSON object."""
    return {"machine": asdict(machine), "tables": [table.as_json() for table in tables]}


def _shown(cell: Cell) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, str):
        return cell
    return f"{cell:,.0f}" if abs(cell) >= 100 else f"{cell:.3g}"
