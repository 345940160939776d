"""`mlm-jax probe`: probe a model for bias or grammar."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlm_jax.commands.flags import parse, positional, repeated
from mlm_jax.errors import InputError
from mlm_jax.files.folder_lock import own_folder
from mlm_jax.files.json_files import json_text

if TYPE_CHECKING:
    from mlm_jax.probes.probes import ProbeReport


@dataclass(frozen=True)
class Arguments:
    """Probe a model for bias or grammar, and print a table; --output also writes all items and a bar chart.

    Requires one of --template (with --group at least twice), --crows-pairs, --winobias and --blimp."""

    model: str = positional("MODEL")
    """A run folder, another model's folder, a built-in name, hf://user/model or kaggle://handle."""
    template: tuple[str, ...] = repeated()
    """Sentence with {} for the group and one [MASK], such as "{} can work as a [MASK]."; may be repeated."""
    group: tuple[str, ...] = repeated()
    """Word for {}; repeat for each group. The first group is compared with each of the others."""
    targets: tuple[str, ...] = ()
    """Words to compare at the [MASK]; by default the most probable words of each group."""
    top_k: int = 20
    """Number of most probable words per group."""
    crows_pairs: Path | None = None
    """File crows_pairs_anonymized.csv of CrowS-Pairs."""
    winobias: Path | None = None
    """Folder with pro_stereotyped_type1.txt.dev and the other files of WinoBias."""
    blimp: tuple[Path, ...] = ()
    """.jsonl files of BLiMP."""
    output: Path | None = None
    """Folder for probe.json, probe.tsv and probe.png."""
    bootstrap: int = 1000
    """Number of bootstrap samples for the 95 % intervals."""
    seed: int = 0
    """Seed of the bootstrap."""
    json: bool = False
    """Print the whole report as one line of JSON instead of the table."""


def main(arguments: Sequence[str], prog: str) -> None:
    """Probes the model and prints the report."""
    parsed = parse(Arguments, arguments, prog)
    modes = (parsed.template, parsed.crows_pairs, parsed.winobias, parsed.blimp)
    if sum(bool(mode) for mode in modes) != 1:
        raise InputError(
            "one of --template, --crows-pairs, --winobias and --blimp must be given, and only one"
        )
    if not parsed.template and (parsed.group or parsed.targets):
        raise InputError("--group and --targets: must be given with --template only")
    with own_folder(parsed.output) if parsed.output is not None else nullcontext():
        report = _probe(parsed)
        from mlm_jax.probes.output import table, write_report

        if parsed.output is not None:
            write_report(parsed.output, report)
    print(json_text(asdict(report), ensure_ascii=False) if parsed.json else table(report))


def _probe(arguments: Arguments) -> "ProbeReport":
    # Imported late, so that a mistyped flag is reported before jax starts.
    from mlm_jax.probes.datasets import read_crows_pairs, read_minimal_pairs, read_winobias
    from mlm_jax.probes.probes import (
        Bootstrap,
        probe_crows_pairs,
        probe_minimal_pairs,
        probe_templates,
        probe_winobias,
    )
    from mlm_jax.use.masked_lm import MaskedLM

    def load() -> MaskedLM:
        model = MaskedLM.from_preset(arguments.model)
        model.progress = True
        return model

    # The files are read first, because a model may take minutes to download.
    bootstrap = Bootstrap(arguments.bootstrap, arguments.seed)
    if arguments.crows_pairs is not None:
        crows_pairs = read_crows_pairs(arguments.crows_pairs)
        return probe_crows_pairs(load(), crows_pairs, bootstrap)
    if arguments.winobias is not None:
        pronoun_pairs = read_winobias(arguments.winobias)
        return probe_winobias(load(), pronoun_pairs, bootstrap)
    if arguments.blimp:
        minimal_pairs = [pair for file in arguments.blimp for pair in read_minimal_pairs(file)]
        return probe_minimal_pairs(load(), minimal_pairs, bootstrap)
    return probe_templates(
        load(),
        arguments.template,
        arguments.group,
        targets=arguments.targets or None,
        top_k=arguments.top_k,
        bootstrap=bootstrap,
    )
