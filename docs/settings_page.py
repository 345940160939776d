"""MkDocs hook that generates pages.

- settings.md: every setting, from the dataclasses in `mlm_jax/config`.
- index.md, contributing.md, changelog.md: README.md, CONTRIBUTING.md and CHANGELOG.md of the repository.
"""

import inspect
import re
import types
import typing
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from mlm_jax.config import TrainConfig
from mlm_jax.config.settings import field_docs

ROOT = Path(__file__).resolve().parent.parent
MARKER = "<!-- filled by settings_page.py -->"
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages of the repository's root to the site."""
    # Imported late: the tests call the functions below without MkDocs.
    from mkdocs.structure.files import File  # noqa: PLC0415

    for source, target in PAGES.items():
        files.append(File.generated(config, target, content=site_page((ROOT / source).read_text())))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fills the settings page."""
    return markdown.replace(MARKER, settings_tables()) if page.file.src_uri == "settings.md" else markdown


def site_page(markdown: str) -> str:
    """Returns a page of the repository's root with its links rewritten for the site."""
    markdown = markdown.replace("](docs/", "](")
    for source, target in PAGES.items():
        markdown = markdown.replace(f"]({source}", f"]({target}")
    return markdown


def settings_tables() -> str:
    """Returns one table per config class, as Markdown, with the defaults of `TrainConfig`."""
    return "\n".join(_section(TrainConfig(), ""))


def _section(config: Any, prefix: str) -> list[str]:
    """Returns the lines of a config's section, followed by those of its nested configs."""
    kinds, docs = typing.get_type_hints(type(config)), field_docs(type(config))
    title = prefix.rstrip(".") or "Run"
    lines = [f"## {title}", "", f"`{type(config).__name__}`: {inspect.getdoc(config)}", ""]
    lines += ["| setting | type | default | |", "| --- | --- | --- | --- |"]
    nested: list[str] = []
    for field in fields(config):
        value, name = getattr(config, field.name), prefix + field.name
        if is_dataclass(value):
            nested += _section(value, f"{name}.")
            continue
        summary, _, details = docs[field.name].partition("\n")
        description = f"{summary}<br>{' '.join(details.split())}".removesuffix("<br>")
        cells = (f"`{name}`", f"`{type_name(kinds[field.name])}`", f"`{value!r}`", description)
        lines.append(f"| {' | '.join(re.sub(r'[|]', '&#124;', cell) for cell in cells)} |")
    return [*lines, "", *nested]


def type_name(kind: Any) -> str:
    """Returns a readable name of a type: `int`, `float or None`, `"packed" or "document"`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(type_name(argument) for argument in arguments)
    if origin is Literal:
        return " or ".join(f'"{value}"' for value in arguments)
    if origin is tuple:
        return f"tuple of {type_name(arguments[0])}"
    return "None" if kind is type(None) else str(kind.__name__)
