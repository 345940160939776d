"""The documentation names only what exists: pages, anchors, files, commands with their flags, configs, settings."""

import dataclasses
import importlib
import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import mlm_jax
from mlm_jax.__main__ import COMMANDS
from mlm_jax.commands import config_flags, flags
from mlm_jax.config import TrainConfig
from mlm_jax.config.settings import flatten
from mlm_jax.sweep.plan import load_sweep

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
PAGE_IDS = [page.name for page in PAGES]
# What a name in capitals, or a run that the page makes, stands for here.
PLACEHOLDERS = {"CONFIG": "demo", "runs/medical": "demo"}

each_page = pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)


@each_page
def test_links_and_images_exist(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    for link in links:
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.is_file(), f"{page.name}: {link}"
        if anchor:
            assert anchor in set(_anchors(target.read_text())), f"{page.name}: {link}"


@each_page
def test_files_in_backticks_exist(page: Path) -> None:
    for name in re.findall(r"`((?:mlm_jax|scripts|configs|tests|docs)/[\w./-]*)`", page.read_text()):
        assert (ROOT / name).exists(), f"{page.name}: {name}"


@each_page
def test_python_blocks_compile(page: Path) -> None:
    for block in _python_blocks(page.read_text()):
        compile(block, page.name, "exec")


@each_page
def test_commands_parse(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each `mlm-jax` command line names a command that exists, with its flags, a config that loads, valid settings.

    A config is a shipped one or a Python block of the page that begins with its file name.
    """
    text = page.read_text()
    monkeypatch.chdir(tmp_path)
    for block in _python_blocks(text):
        if file := re.match(r'"""(\w+\.py)', block):
            (tmp_path / file[1]).write_text(block)
    for name in re.findall(r"mlm-jax ([a-z][a-z-]*)", text):
        assert name in COMMANDS, f"{page.name}: mlm-jax {name}"
    for line in _command_lines(text):
        name, *words = shlex.split(line, comments=True)[1:]
        if name.startswith("-") or not words:
            continue
        words = [PLACEHOLDERS.get(word, word) for word in words]
        module = importlib.import_module(f"mlm_jax.commands.{name.replace('-', '_')}")
        if name in ("train", "compile-check"):
            # Without a config, everything follows from a model, which may not exist here.
            config_flags.parse_config_and_flags(
                module.one_name(words) if name == "train" else words,
                line,
                flags_class=getattr(module, "Arguments", getattr(module, "Flags", None)),
                without_config=(lambda given, _: flags.build(TrainConfig, given, TrainConfig()))
                if name == "train"
                else None,
            )
            continue
        arguments = flags.parse(module.Arguments, words, line)
        if name == "ablate":
            load_sweep(arguments.sweep)


@each_page
def test_shipped_sweeps_exist(page: Path) -> None:
    for name in re.findall(r"\bablations/\w+(?= |`)", page.read_text()):
        assert (ROOT / f"configs/{name}.py").is_file(), f"{page.name}: {name}"


def test_all_shipped_configs_are_listed() -> None:
    training = (ROOT / "docs/training.md").read_text()
    assert [path.stem for path in (ROOT / "configs").glob("*.py") if f"`{path.stem}`" not in training] == []


def test_all_commands_are_documented() -> None:
    text = "".join(page.read_text() for page in PAGES)
    assert [name for name in COMMANDS if f"mlm-jax {name}" not in text] == []


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def test_readme_lists_the_rooms_of_the_import_contract() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    layers = pyproject["tool"]["importlinter"]["contracts"][0]["layers"]
    contract = [name.strip().removeprefix("mlm_jax.") for layer in layers for name in layer.split("|")]
    _, _, map_ = (ROOT / "README.md").read_text().partition("    mlm_jax/\n")
    inside = re.match(r"(?: {6}.*\n)+", map_)
    assert inside is not None
    listed = re.findall(r"^ {6}(\w+)/|(\w+)\.py", inside[0], re.MULTILINE)
    assert [room or module for room, module in listed] == contract


def test_the_api_reference_has_every_public_name() -> None:
    text = (ROOT / "docs/api.md").read_text()
    documented = re.findall(r"^::: mlm_jax\.(\w+)$", text, re.MULTILINE)
    assert sorted([*documented, "PRESETS"]) == sorted(mlm_jax.__all__)
    assert "`PRESETS`" in text


def test_the_settings_page_describes_every_setting() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| `.+` \| `.+` \| \S.* \|$", _hook().settings_tables(), re.MULTILINE)
    assert sorted(rows) == sorted(flatten(dataclasses.asdict(TrainConfig())))


def test_pages_of_the_root_link_to_pages_of_the_site() -> None:
    text = "[a](docs/data.md#rows) ![b](docs/b.png) [c](CONTRIBUTING.md)"
    assert _hook().site_page(text) == "[a](data.md#rows) ![b](b.png) [c](contributing.md)"


def _hook():
    spec = importlib.util.spec_from_file_location("settings_page", ROOT / "docs/settings_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def _anchors(text: str) -> Iterator[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _command_lines(text: str) -> Iterator[str]:
    """The `mlm-jax` commands of indented code, each in one line, with a number for each shell variable.

    Those with "…" are left out: they show how a command is formed.
    """
    code = re.sub(r"\\\n +", "", text)
    for line in re.findall(r"^ {4,}(mlm-jax .*)$", code, re.MULTILINE):
        if "…" not in line:
            yield re.sub(r"\$\{?[\w%:*#]+\}?", "1", line)
