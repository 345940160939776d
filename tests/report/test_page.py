import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mlm_jax.report.page import MOST_POINTS, page
from mlm_jax.report.state import read_sweep
from tests.report.sweeps import LOSSES, step_record, write_lines, write_outcome, write_plan, write_sweep

HOSTILE = '</script><script>alert(1)</script><b>\u2028 & " {{data}}'


class Elements(HTMLParser):
    """The elements of a page, and the text of those that HTML does not parse."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""


def test_the_page_asks_for_nothing_outside_of_it(tmp_path: Path) -> None:
    text = page(read_sweep(write_sweep(tmp_path)))
    tags = Elements(text).tags
    assert not [tag for tag, _ in tags if tag in ("img", "iframe", "object", "embed", "base")]
    assert [attributes["href"] for tag, attributes in tags if tag == "link"] == ["data:,"]
    assert not [attributes for tag, attributes in tags if "src" in attributes]
    assert not re.findall(r"url\((?!#)|@import|fetch\(|XMLHttpRequest", text)
    # The only address names the kind of an element.
    assert set(re.findall(r"https?://[^\"' ]+", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"\{\{\w+\}\}", text)


def test_hostile_names_are_escaped(tmp_path: Path) -> None:
    plan = {"plain": {"a": 1}, HOSTILE: {"a": HOSTILE}}
    changes = dict.fromkeys(("name", "source", "description"), HOSTILE)
    write_plan(tmp_path, list(plan), [0], trials=plan, **changes)
    text = page(read_sweep(tmp_path))
    elements = Elements(text)
    assert len(elements.scripts) == 2
    assert f"<h1>{html.escape(HOSTILE)}</h1>" in text
    assert json.loads(elements.scripts[0])["trials"][1]["name"] == HOSTILE
    assert not [tag for tag, _ in elements.tags if tag == "b"]


@pytest.mark.parametrize("points", [MOST_POINTS, 20_000])
def test_long_curves_are_thinned(tmp_path: Path, points: int) -> None:
    folder = write_sweep(tmp_path, {"rate_15": {0: 2.1}})
    lines = [step_record(step, 9 - 7 * step / points) for step in range(1, points + 1)]
    write_lines(folder / "rate_15" / "seed_0" / "metrics.jsonl", lines)
    (trial,) = json.loads(Elements(page(read_sweep(folder))).scripts[0])["trials"]
    curve = trial["runs"][0]["training"]
    assert len(curve["steps"]) == len(curve["losses"]) == len(curve["tokens"]) == MOST_POINTS
    assert (curve["steps"][-1], curve["losses"][-1], curve["tokens"][-1]) == (points, 2.0, 230 * points)
    # The bold curve: medians of a hundred groups.
    assert trial["mean"]["training"]["groupSize"] == points // 100
    assert len(trial["mean"]["training"]["steps"]) == 100


def test_curves_of_a_trial_and_their_mean(tmp_path: Path) -> None:
    data = json.loads(
        Elements(page(read_sweep(write_sweep(tmp_path, LOSSES | {"x": {0: 2.0, 1: None}})))).scripts[0]
    )
    assert data["baseline"] == "rate_15"
    assert [trial["name"] for trial in data["trials"]] == [*LOSSES, "x"]
    mean = data["trials"][0]["mean"]["evaluation"]
    assert (mean["seeds"], mean["losses"][-1], mean["groupSize"]) == ([0, 1, 2], 2.12, 1)
    assert (mean["steps"][-1], mean["tokens"][-1]) == (1000, 230_000)
    failing = data["trials"][3]
    assert failing["mean"]["evaluation"]["seeds"] == [0]
    assert [(run["status"], len(run["evaluation"]["steps"])) for run in failing["runs"]] == [
        ("finished", 10),
        ("failed", 5),
        ("not started", 0),
    ]


def test_each_run_has_its_config_command_and_machine(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, {"rate_15": {0: 2.1, 1: 2.2}})
    write_outcome(
        folder / "rate_15" / "seed_1", 1000, machine={"device": "TPU <v5e>"}, command="python again"
    )
    first, second = re.findall(r"<details>.*?</details>", page(read_sweep(folder)), re.DOTALL)
    assert "<dt>machine.device</dt><dd><code>cpu</code></dd>" in first
    assert "<dt>command</dt><dd><code>python again</code></dd>" in second
    assert "<dt>machine.device</dt><dd><code>TPU &lt;v5e&gt;</code></dd>" in second
    assert "&quot;seed&quot;: 0" in first
    assert "&quot;seed&quot;: 1" in second
