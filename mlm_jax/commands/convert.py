"""`mlm-jax convert`: convert a model between mlm_jax, Hugging Face, Google's TF1 checkpoints and KerasHub."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mlm_jax.commands.flags import parse, positional, required


@dataclass(frozen=True)
class Arguments:
    """Convert a model between mlm_jax, Hugging Face, Google's TF1 checkpoints and KerasHub.

    Every tensor is either converted or reported as dropped. Outputs are compared with those of the installed
    libraries."""

    source: str = positional("SOURCE")
    """A model folder of any format, a run folder, a built-in name, hf://user/model[@revision] or kaggle://handle."""
    target: Path = positional("TARGET")
    """Folder to create."""
    to: Literal["mlm_jax", "hugging_face", "google_tf", "keras_hub"] = required("FORMAT")
    """Format of the target: mlm_jax, hugging_face, google_tf or keras_hub."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Data type of all tensors, float32 or bfloat16; by default the source's."""
    allow_random_head: bool = False
    """Add a randomly initialized MLM head to a model that has none."""
    allow_random_pooler: bool = False
    """Add a randomly initialized pooler to a model that has none, if the target needs one."""
    backbone_only: bool = False
    """Convert only the encoder."""
    change_conventions: bool = False
    """Write the target's own GELU or epsilon if it cannot express the model's."""


def main(arguments: Sequence[str], prog: str) -> None:
    """Converts the model, and prints dropped tensors, changes and comparisons."""
    parsed = parse(Arguments, arguments, prog)
    # Imported late, so that a mistyped flag is reported before jax starts.
    from mlm_jax.store.conversion import CERTIFICATE_FILE, Request, convert

    request = Request(
        dtype=parsed.dtype,
        allow_random_head=parsed.allow_random_head,
        allow_random_pooler=parsed.allow_random_pooler,
        backbone_only=parsed.backbone_only,
        change_conventions=parsed.change_conventions,
    )
    certificate = convert(parsed.source, parsed.target, parsed.to, request, progress=True)
    source, target = certificate["source"], certificate["target"]
    for name, reason in source["dropped"].items():
        print(f"dropped {name}: {reason}")
    for change in [*source["notes"], *certificate["changes"]]:
        print(f"WARNING: {change}")
    for name, comparison in certificate["comparisons"].items():
        print(f"{name}: {_describe(comparison)}")
    print(
        f"{parsed.target}: {source['format']} → {target['format']}, {target['parameters']:,} parameters in "
        f"{target['tensors']} tensors; {CERTIFICATE_FILE} has the checksums"
    )


def _describe(comparison: dict[str, Any]) -> str:
    if "max_difference" not in comparison:
        return f"not compared ({comparison['reason']})"
    largest = f"(largest output {comparison['largest_output']:.3g})"
    difference = f"{comparison['max_difference']:.1e}"
    if "library" in comparison:
        return f"{comparison['library']} computes the same outputs within {difference} {largest}"
    return f"the changes affect the outputs by up to {difference} {largest}"
