"""Convert a BERT between mlm_jax, Hugging Face, Google's TF1 checkpoints and KerasHub."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from mlm_jax.commands import cli


@dataclass(frozen=True)
class Arguments:
    """Convert a BERT between mlm_jax, Hugging Face, Google's TF1 checkpoints and KerasHub.

    Every number is carried over or named; outputs are compared with those of the libraries that are installed."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """A folder (its format is recognised), a run folder, a built-in name, hf://user/model or kaggle://handle."""
    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TARGET")]
    """The folder to make."""
    to: Literal["mlm_jax", "hugging_face", "google_tf", "keras_hub"]
    """The target's format."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Store every tensor so, instead of as the source has it."""
    allow_random_head: bool = False
    """Give a model that has no head a masked-LM head of random numbers."""
    allow_random_pooler: bool = False
    """Give a model that has no pooler one of random numbers where the target must have one."""
    backbone_only: bool = False
    """Convert the encoder alone."""
    change_conventions: bool = False
    """Where the target cannot say a GELU or an epsilon, write the one that it has."""


def main() -> None:
    """Read the arguments, convert, tell."""
    arguments = cli.parse(Arguments)
    # Late, so that a mistyped argument is told before jax starts.
    from mlm_jax.store.conversion import CERTIFICATE_FILE, Request, convert

    request = Request(
        dtype=arguments.dtype,
        allow_random_head=arguments.allow_random_head,
        allow_random_pooler=arguments.allow_random_pooler,
        backbone_only=arguments.backbone_only,
        change_conventions=arguments.change_conventions,
    )
    certificate = convert(arguments.source, arguments.target, arguments.to, request, progress=True)
    source, target = certificate["source"], certificate["target"]
    for name, reason in source["dropped"].items():
        print(f"dropped {name}: {reason}")
    for change in certificate["changes"]:
        print(f"WARNING: {change}")
    for name, comparison in certificate["comparisons"].items():
        print(f"{name}: {_told(comparison)}")
    print(
        f"{arguments.target}: {source['format']} → {target['format']}, {target['parameters']:,} parameters in "
        f"{target['tensors']} tensors; {CERTIFICATE_FILE} has the checksums"
    )


def _told(comparison: dict[str, Any]) -> str:
    if "max_difference" not in comparison:
        return f"not compared ({comparison['reason']})"
    beside = (
        f"{comparison['library']} computes"
        if "library" in comparison
        else "what changed moves the outputs by"
    )
    verb = "what we do, within " if "library" in comparison else "up to "
    return f"{beside} {verb}{comparison['max_difference']:.1e} (largest output {comparison['largest_output']:.3g})"


if __name__ == "__main__":
    cli.run(main)
