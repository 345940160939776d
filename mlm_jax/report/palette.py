"""Colours and dashes that tell trials apart, in pictures and on the page alike."""

from collections.abc import Sequence

# Okabe & Ito 2008 (Color Universal Design), safe for the common kinds of colour blindness, without yellow, which
# white swallows. The baseline has the colour of text.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
# In units of the line's width; one after the other once the colours are used up.
DASHES: tuple[tuple[int, ...], ...] = ((), (5, 2), (1, 2), (6, 2, 1, 2))


Style = tuple[str, tuple[int, ...]]


def styles_of(trials: Sequence[str], baseline: str, baseline_colour: str) -> list[Style]:
    """Colour and dashes of each trial; the baseline has a solid line of its own colour."""
    others = {name: number for number, name in enumerate(name for name in trials if name != baseline)}
    return [
        (baseline_colour, DASHES[0])
        if name == baseline
        else (COLOURS[others[name] % len(COLOURS)], DASHES[others[name] // len(COLOURS) % len(DASHES)])
        for name in trials
    ]
