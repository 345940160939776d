"""Reads the tokenizer of a folder with the ids of transformers 5: as its files state, or rebuilt as its class does."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import tokenizers

from mlm_jax.errors import InputError
from mlm_jax.vocabulary.added_tokens import add_tokens, name_of
from mlm_jax.vocabulary.byte_level import byte_level_backend, frame_texts, read_vocabulary_and_merges
from mlm_jax.vocabulary.characters import characters_backend
from mlm_jax.vocabulary.folder_settings import RULES, TOKENIZER_CONFIG_FILE, FolderSettings
from mlm_jax.vocabulary.roles import set_frame
from mlm_jax.vocabulary.sentencepiece_file import read_sentencepiece
from mlm_jax.vocabulary.tokenizer_json import GENERIC_CLASS, backend_from_json, rules_of
from mlm_jax.vocabulary.unigram import Pieces, UnigramSettings, pieces_of_json, unigram_backend
from mlm_jax.vocabulary.vocab_txt import (
    BertRules,
    check_marks,
    effective,
    guess_rules,
    read_vocabulary,
    warn_of_contradiction,
    warn_of_guess,
)
from mlm_jax.vocabulary.wordpiece import CONTINUATION_PREFIX, SPECIAL_TOKENS, WORD_LENGTH_LIMIT, bert_backend


def read_vocabulary_file(folder: FolderSettings, file: Path, given: BertRules) -> tokenizers.Tokenizer:
    """Reads a `vocab.txt`: with BERT's rules, or of characters if the class says so."""
    token_ids = read_vocabulary(file)
    if folder.kind == "characters":
        return _characters(folder, file, token_ids, given)
    check_marks(file, token_ids, folder.class_name)
    if folder.kind == "word_piece" or folder.config or given.do_lower_case is not None:
        rules = folder.rules(given, BertRules(**RULES))
        stated = folder.rules(given, BertRules()).do_lower_case is not None
        warn_of_contradiction(
            file, token_ids, rules, None if stated else folder.class_name or "BertTokenizer"
        )
    elif found := rules_of(folder.tokenizer_json):
        rules = folder.rules(given, found)
    else:
        rules = folder.rules(given, guess_rules(token_ids))
        warn_of_guess(file, token_ids, rules)
    return _word_piece(folder, file, token_ids, rules, {})


def read_byte_level(folder: FolderSettings, file: Path, given: BertRules) -> tokenizers.Tokenizer:
    """Reads a `vocab.json` with the `merges.txt` beside it."""
    return _byte_level(folder, file, *read_vocabulary_and_merges(file), {}, given)


def read_sentencepiece_model(folder: FolderSettings, file: Path, given: BertRules) -> tokenizers.Tokenizer:
    """Reads a SentencePiece model, with the ids that the class gives to its pieces."""
    _check_no_rules(file, given)
    pieces = read_sentencepiece(file)
    roles = folder.token_files({}).roles
    return _unigram(folder, file, pieces.numbered_for(str(folder.class_name), roles), {})


def read_tokenizer_json(folder: FolderSettings, file: Path, given: BertRules) -> tokenizers.Tokenizer:
    """Reads a `tokenizer.json`: as it is, or rebuilt from its vocabulary if transformers' class does so."""
    content = folder.tokenizer_json
    model = content.get("model")
    if folder.kind == "byte_level":
        if not isinstance(model, dict) or not isinstance(model.get("merges"), list):
            raise InputError(
                f"{file}: has no merges, but its class is {folder.class_name}; expected byte-level BPE"
            )
        return _byte_level(folder, file, model.get("vocab") or {}, model["merges"], content, given)
    if folder.kind == "unigram":
        _check_no_rules(file, given)
        return _unigram(folder, file, pieces_of_json(file, str(folder.class_name), content), content)
    stated = rules_of(content)
    if stated is None or content["model"].get("continuing_subword_prefix") != CONTINUATION_PREFIX:
        if folder.kind == "word_piece":
            raise InputError(
                f"{file}: is not BERT's WordPiece, but its class is {folder.class_name}; set tokenizer_class to "
                f"{GENERIC_CLASS} in {TOKENIZER_CONFIG_FILE} to read it as it is"
            )
        _check_no_rules(file, given)
    elif folder.kind == "word_piece" or given != BertRules():
        return _rebuilt_word_piece(folder, file, content, given, stated)
    backend = backend_from_json(file, content)
    add_tokens(backend, folder.token_files(content))
    if backend.post_processor is None:
        roles = folder.roles(backend)
        warnings.warn(
            f"{file}: has no post_processor, so transformers adds no special tokens to texts; mlm_jax reads and trains "
            f"them as {roles.cls_token} text {roles.sep_token}, as in BERT",
            stacklevel=2,
        )
    if isinstance(model, dict) and model.get("type") == "Unigram":
        # Other models have the name of their unknown token, which `roles_of` compares.
        number, unknown = model.get("unk_id"), folder.roles(backend).unk_token
        found = None if number is None else model["vocab"][number][0]
        if found != unknown:
            raise InputError(
                f"{file}: its unk_id is {number}, {found!r}: must be that of {unknown!r}, the unk_token"
            )
    return backend


def _rebuilt_word_piece(
    folder: FolderSettings, file: Path, content: dict[str, Any], given: BertRules, stated: BertRules
) -> tokenizers.Tokenizer:
    # Fails for content that the library rejects.
    backend_from_json(file, content)
    has_class = folder.kind == "word_piece"
    rules = folder.rules(given, BertRules(**RULES) if has_class else stated)
    changed = [
        name
        for name in RULES
        if effective(rules)[name] != effective(stated)[name]
        and getattr(folder.rules(given, BertRules()), name) is None
        and not (name == "strip_accents" and rules.strip_accents is None)
    ]
    limit = content["model"].get("max_input_chars_per_word", WORD_LENGTH_LIMIT)
    if changed:
        warnings.warn(
            f"{file}: {changed[0]} is {effective(stated)[changed[0]]}, but {folder.class_name} of transformers uses "
            f"{effective(rules)[changed[0]]} unless {TOKENIZER_CONFIG_FILE} sets it, and so does mlm_jax",
            stacklevel=2,
        )
    if limit != WORD_LENGTH_LIMIT and has_class:
        warnings.warn(
            f"{file}: max_input_chars_per_word is {limit}, but {folder.class_name} of transformers 5 reads "
            f"{WORD_LENGTH_LIMIT}; set tokenizer_class to {GENERIC_CLASS} to use {limit} there, too",
            stacklevel=2,
        )
    return _word_piece(folder, file, content["model"]["vocab"], rules, content, limit)


def _word_piece(
    folder: FolderSettings,
    file: Path,
    token_ids: Mapping[str, int],
    rules: BertRules,
    content: Mapping[str, Any],
    limit: int = WORD_LENGTH_LIMIT,
) -> tokenizers.Tokenizer:
    build = folder.known_class if folder.kind == "word_piece" else None
    files = folder.token_files(content)
    backend = bert_backend(
        token_ids,
        # A class adds its special tokens with their flags in the files; without one, BERT's are those that exist.
        special_tokens=() if build else SPECIAL_TOKENS,
        unknown=_unknown(folder, file, token_ids) if build else SPECIAL_TOKENS[1],
        lowercase=rules.do_lower_case is not False,
        strip_accents=rules.strip_accents,
        chinese_characters=rules.tokenize_chinese_chars is not False,
        max_input_chars_per_word=limit,
    )
    add_tokens(backend, files)
    if build:
        set_frame(
            backend, folder.roles(backend), separators=build.separators, second_segment=build.second_segment
        )
    return backend


def _byte_level(
    folder: FolderSettings,
    file: Path,
    token_ids: Mapping[str, int],
    merges: Sequence[Any],
    content: Mapping[str, Any],
    given: BertRules,
) -> tokenizers.Tokenizer:
    _check_no_rules(file, given)
    backend = byte_level_backend(
        file, token_ids, merges, add_prefix_space=folder.flag("add_prefix_space") or False
    )
    add_tokens(backend, folder.token_files(content))
    frame_texts(backend, folder.roles(backend))
    return backend


def _unigram(
    folder: FolderSettings, file: Path, pieces: Pieces, content: Mapping[str, Any]
) -> tokenizers.Tokenizer:
    build, name = folder.known_class, str(folder.class_name)
    assert build is not None, "read for a class"
    files = folder.token_files(content)
    if pieces.added:
        # Those of a SentencePiece model take the place of the class's own list.
        added = [
            {"content": piece, "special": special, "normalized": False}
            for piece, special in pieces.added.items()
        ]
        defaults = {**build.defaults, "additional_special_tokens": added}
        files = replace(files, known_class=replace(build, defaults=defaults))
    stated = {field: folder.flag(field) for field in UnigramSettings.__dataclass_fields__}
    settings = UnigramSettings(**{field: value for field, value in stated.items() if value is not None})
    backend = unigram_backend(file, name, pieces, name_of(files.roles["unk_token"]), settings)
    add_tokens(backend, files)
    set_frame(
        backend, folder.roles(backend), separators=build.separators, second_segment=build.second_segment
    )
    return backend


def _characters(
    folder: FolderSettings, file: Path, token_ids: Mapping[str, int], given: BertRules
) -> tokenizers.Tokenizer:
    _check_no_rules(file, given)
    build = folder.known_class
    assert build is not None, "read for a class"
    files = folder.token_files({})
    names = [name_of(value) for key, value in files.roles.items() if key.endswith("_token")]
    unknown = _unknown(folder, file, token_ids)
    backend = characters_backend(token_ids, unknown, names)
    add_tokens(backend, files)
    set_frame(
        backend, folder.roles(backend), separators=build.separators, second_segment=build.second_segment
    )
    return backend


def _unknown(folder: FolderSettings, file: Path, token_ids: Mapping[str, int]) -> str:
    """Returns the entry for unknown text that the class or the files name. Raises InputError if there is none."""
    unknown = str(name_of(folder.token_files({}).roles["unk_token"]))
    if unknown not in token_ids:
        raise InputError(f"{file}: has no {unknown!r}; expected an entry for unknown text, its unk_token")
    return unknown


def _check_no_rules(file: Path, given: BertRules) -> None:
    if given != BertRules():
        raise InputError(f"{file}: is not BERT's WordPiece, so casing cannot be set; expected none")
