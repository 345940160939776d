"""Rows that are full of paragraphs, one after the other, or a paragraph a row, at equal real tokens.

python scripts/ablate.py configs/ablations/packing.py --output runs/ablations/packing --seeds 3

RoBERTa (Liu et al. 2019) found rows of one document slightly better than rows that cross documents, and took the latter
because they are full.

Measured: 4.60 nats packed, 4.60 without attention across paragraphs, 4.57 with a paragraph a row, no difference seen; 9
runs of 99 to 116 s on two CPU cores that had other work.
"""

from dataclasses import replace

from mlm_jax.configs.ablations.tiny_wiki import config as parent

from mlm_jax.config import TrainConfig

# Of 32 positions 31.99 are no padding in packed rows and 27.86 in rows of one paragraph.
_STEPS_OF_DOCUMENTS = 31.99 / 27.86


def trials() -> dict[str, TrainConfig]:
    """A third trial packs the rows, but lets no token attend to another paragraph."""
    base = parent()
    steps = round(base.num_steps * _STEPS_OF_DOCUMENTS)
    return {
        "packed": base,
        "packed_within": replace(base, data=replace(base.data, attend_within_documents=True)),
        "document": replace(base, data=replace(base.data, packing="document"), num_steps=steps),
    }
