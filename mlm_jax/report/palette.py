"""Colors and dashes of trials, shared by pictures and page."""

from collections.abc import Sequence

# Okabe & Ito 2008 (Color Universal Design), safe for the common kinds of color blindness, without yellow, which is hard
# to see on white. The baseline has the color of text.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
# In units of the line width; the next pattern is used when all colors are taken.
DASHES: tuple[tuple[int, ...], ...] = ((), (5, 2), (1, 2), (6, 2, 1, 2))


Style = tuple[str, tuple[int, ...]]


def styles_of(trials: Sequence[str], baseline: str, baseline_color: str) -> list[Style]:
    """Returns color and dashes of each trial; the baseline has a solid line in `baseline_color`."""
    others = {name: number for number, name in enumerate(name for name in trials if name != baseline)}
    return [
        (baseline_color, DASHES[0])
        if name == baseline
        else (COLORS[others[name] % len(COLORS)], DASHES[others[name] // len(COLORS) % len(DASHES)])
        for name in trials
    ]
