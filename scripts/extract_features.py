"""Write the features that a model has for texts, to .npz or .parquet."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mlm_jax.commands import cli


@dataclass(frozen=True)
class Arguments:
    """Write the features that a model has for texts, to .npz or .parquet: of any number, in constant memory."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder, another model's folder, a built-in name, hf://user/model or kaggle://handle."""
    input: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TEXT_FILE")]
    """.txt (a text a line), .jsonl or .parquet files, also compressed; globs and fsspec URLs."""
    output: Path
    """FILE.npz or FILE.parquet."""
    layer: int = -1
    """0 is the embeddings' output, then the layers; -1 is the last."""
    pooling: Literal["mean", "cls", "none"] = "mean"
    """The mean of all tokens, the first one, or every token's own features."""
    truncate: bool = False
    """Cut texts that are too long, instead of stopping at the first."""
    text_field: str = "text"
    """JSON field or Parquet column that holds the text."""


def main() -> None:
    """Read the arguments, extract, tell."""
    arguments = cli.parse(Arguments)
    # Late, so that a mistyped argument is told before jax starts.
    from mlm_jax.text.corpus import read_documents
    from mlm_jax.use.features_file import extract_features
    from mlm_jax.use.masked_lm import MaskedLM

    count = extract_features(
        MaskedLM.from_preset(arguments.model),
        read_documents(arguments.input, text_field=arguments.text_field),
        arguments.output,
        layer=arguments.layer,
        pooling=arguments.pooling,
        truncate=arguments.truncate,
        progress=True,
    )
    print(f"{arguments.output}: features of {count:,} texts")


if __name__ == "__main__":
    cli.run(main)
