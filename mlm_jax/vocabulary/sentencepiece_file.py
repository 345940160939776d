"""SentencePiece models (`sentencepiece.bpe.model`, `spiece.model`), read with the optional extra `sentencepiece`."""

from importlib import import_module
from pathlib import Path
from typing import Any

from mlm_jax.errors import InputError, one_line
from mlm_jax.files.git_lfs import check_no_pointer_file
from mlm_jax.vocabulary.unigram import Pieces

_UNIGRAM = 1
_CONTROL, _USER_DEFINED = 3, 4
# The largest published models have 500,000 pieces and 15 MB.
_LARGEST_BYTES = 1 << 28


def read_sentencepiece(file: Path) -> Pieces:
    """Returns the pieces of a SentencePiece model in the order of their ids.

    Raises:
        InputError: the extra is not installed, or the file is not a Unigram model of SentencePiece.
        OSError: the file cannot be read.
    """
    check_no_pointer_file(file)
    if file.stat().st_size > _LARGEST_BYTES:
        raise InputError(
            f"{file}: {file.stat().st_size / 1e6:.0f} MB: must be a SentencePiece model of at most 256 MB"
        )
    model = _parsed(file)
    if not model.pieces:
        raise InputError(f"{file}: has no pieces; expected a SentencePiece model")
    if model.trainer_spec.model_type != _UNIGRAM:
        raise InputError(f"{file}: its pieces come from merges or words; expected a Unigram model")
    return Pieces(
        scores=[(piece.piece, piece.score) for piece in model.pieces],
        character_map=model.normalizer_spec.precompiled_charsmap or None,
        added={
            piece.piece: piece.type == _CONTROL
            for piece in model.pieces
            if piece.type in (_CONTROL, _USER_DEFINED)
        },
    )


def _parsed(file: Path) -> Any:
    try:
        from google.protobuf.message import DecodeError  # noqa: PLC0415

        # Its classes appear only when it is imported, so type checkers know none of them.
        format_of_models = import_module("sentencepiece.sentencepiece_model_pb2")
    except ImportError as error:
        raise InputError(
            f"{file}: SentencePiece models need sentencepiece: pip install 'mlm-jax[sentencepiece]'"
        ) from error
    model = format_of_models.ModelProto()
    try:
        model.ParseFromString(file.read_bytes())
    except DecodeError as error:
        raise InputError(f"{file}: not a SentencePiece model: {one_line(error)}") from error
    return model
