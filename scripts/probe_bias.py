"""Probe a model for bias: paired templates, CrowS-Pairs, WinoBias; or for grammar, with BLiMP's minimal pairs."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from mlm_jax.commands import cli
from mlm_jax.errors import InputError

if TYPE_CHECKING:
    from mlm_jax.use.probes import ProbeReport


@dataclass(frozen=True)
class Arguments:
    """Probe a model for bias or grammar: a table, and with --output its figures, its items and a bar chart.

    One of --template (with --group twice or more), --crows-pairs, --winobias and --blimp."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder, another model's folder, a built-in name, hf://user/model or kaggle://handle."""
    template: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A sentence with {} for the group and one [MASK], as in "{} can work as a [MASK]."; may be repeated."""
    group: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """What is put for {}; the first group is compared with each other one."""
    targets: tuple[str, ...] = ()
    """The words compared at the [MASK]; by default the likeliest of each group."""
    top_k: int = 20
    """How many likeliest words of each group."""
    crows_pairs: Path | None = None
    """crows_pairs_anonymized.csv."""
    winobias: Path | None = None
    """Folder with pro_stereotyped_type1.txt.dev and the others."""
    blimp: tuple[Path, ...] = ()
    """BLiMP's .jsonl files."""
    output: Path | None = None
    """Folder for probe.json, probe.tsv and probe.png."""
    bootstrap: int = 1000
    """Samples for the 95 % intervals."""
    seed: int = 0
    json: bool = False
    """Print the whole report as one JSON line instead of the table."""


def main() -> None:
    """Read the arguments, probe, tell."""
    arguments = cli.parse(Arguments)
    modes = (arguments.template, arguments.crows_pairs, arguments.winobias, arguments.blimp)
    if sum(bool(mode) for mode in modes) != 1:
        raise InputError(
            "one of --template, --crows-pairs, --winobias and --blimp must be given, and one only"
        )
    if not arguments.template and (arguments.group or arguments.targets):
        raise InputError("--group and --targets: must come with --template")
    if arguments.output is not None and arguments.output.exists() and not arguments.output.is_dir():
        raise InputError(f"--output {arguments.output}: must be a folder, or not be there yet")
    report = _probe(arguments)
    if arguments.output is not None:
        # Late, because importing matplotlib takes a second.
        from mlm_jax.use.probe_output import write_report

        write_report(arguments.output, report)
    if arguments.json:
        print(json.dumps(asdict(report), ensure_ascii=False))
        return
    from mlm_jax.use.probe_output import table

    print(table(report))


def _probe(arguments: Arguments) -> "ProbeReport":
    # Late, so that a mistyped argument is told before jax starts.
    from mlm_jax.use.masked_lm import MaskedLM
    from mlm_jax.use.probe_datasets import read_crows_pairs, read_minimal_pairs, read_winobias
    from mlm_jax.use.probes import (
        Bootstrap,
        probe_crows_pairs,
        probe_minimal_pairs,
        probe_templates,
        probe_winobias,
    )

    def load() -> MaskedLM:
        model = MaskedLM.from_preset(arguments.model)
        model.progress = True
        return model

    # The files first: a model may take minutes to come.
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


if __name__ == "__main__":
    cli.run(main)
