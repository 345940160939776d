"""Tokens per second from raw text to trained model, compared with other libraries."""

import tempfile
from dataclasses import asdict, replace
from pathlib import Path

from mlm_jax.corpus.documents import read_documents
from mlm_jax.text.tokenizer import Tokenizer
from scripts.benchmark.contest import Contestant, compete
from scripts.benchmark.corpus import text_files
from scripts.benchmark.peers import hugging_face, keras_hub
from scripts.benchmark.step import SIZES
from scripts.benchmark.table import Table, compare

_OURS = "mlm_jax, layers unrolled"


def measure_end_to_end(
    texts: tuple[Path, ...], vocabulary: Path | None, *, documents: int, rounds: int, peers: bool
) -> list[Table]:
    """Trains BERT-tiny on rows of 128 tokens; a round is an epoch over `documents` new documents.

    All contestants use the tokenizer in the folder `vocabulary`, by default a tokenizer trained on the text.

    Raises:
        InputError: a text or the tokenizer cannot be read.
        RunError: a contestant fails.
    """
    work, paths = SIZES["tiny"], text_files(texts)
    with tempfile.TemporaryDirectory(prefix="mlm_jax_benchmark_") as folder:
        if vocabulary is None:
            vocabulary = Path(folder)
            Tokenizer.train(read_documents(paths), work.model.vocabulary_size).save(vocabulary)
        settings = {
            "work": asdict(work),
            "texts": paths,
            "tokenizer": str(vocabulary),
            "documents": documents,
        }
        unrolled = replace(work, scan_unroll=work.model.num_layers)
        contestants = [
            Contestant(_OURS, "scripts.benchmark.ours.end_to_end", settings | {"work": asdict(unrolled)})
        ]
        if peers:
            contestants += keras_hub("end_to_end", settings) + hugging_face("end_to_end", settings)
        results = compete(contestants, rounds=rounds)
    return [
        compare(
            f"From text to trained, {work.preset}, {work.batch_size} × {work.sequence_length} tokens, "
            f"{documents} documents per round",
            "real tokens",
            results,
        )
    ]
