"""Record of the rows that a model was trained and evaluated with, which exported models carry."""

from dataclasses import dataclass
from typing import Literal

from mlm_jax.config.masking import MaskingRecipe
from mlm_jax.config.settings import check_types
from mlm_jax.config.train import Packing, TrainConfig


@dataclass(frozen=True)
class TrainingRecord:
    """Rows and masks of a run's evaluations, and the length of its training rows."""

    sequence_length: int
    """Tokens per row."""
    packing: Packing
    """Division of documents into the rows of evaluations."""
    attend_within_documents: bool
    """True if tokens attend only within their document."""
    masking: MaskingRecipe
    """Masks of evaluations."""
    dtype: Literal["float32", "bfloat16"]
    """Data type of activations."""
    longest_rows: int | None
    """Length of the longest rows of training, including training before `init_from`; None if unknown."""

    def __post_init__(self) -> None:
        check_types(self)


def record_of(config: TrainConfig, longest_rows: int | None) -> TrainingRecord:
    """Returns the record of a run."""
    data = config.data
    packing = data.eval_packing or data.packing
    return TrainingRecord(
        sequence_length=data.sequence_length,
        packing=packing,
        # A row with one document needs no restriction.
        attend_within_documents=data.attend_within_documents and packing == "packed",
        masking=config.eval_masking,
        # Not yet chosen in a config that no run began with.
        dtype="float32" if config.compute.dtype == "auto" else config.compute.dtype,
        longest_rows=longest_rows,
    )
