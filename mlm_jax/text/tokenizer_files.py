"""Reads the tokenizer of a folder as its makers meant it: with the ids of transformers or KerasHub for the same folder.

What cannot be read in this way is rejected, and the error names the tokenizer's class. Settings are taken from, in this
order: the caller, `tokenizer_config.json`, `tokenizer.json`, and, for a `vocab.txt` without either, its entries.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from mlm_jax.errors import InputError
from mlm_jax.files.json_files import read_json_object
from mlm_jax.text.added_tokens import TokenFiles, add_tokens
from mlm_jax.text.byte_level import (
    BYTE_LEVEL_FILE,
    MERGES_FILE,
    byte_level_backend,
    frame_texts,
    read_vocabulary_and_merges,
)
from mlm_jax.text.roles import BERT_ROLES, ROBERTA_ROLES, Roles, roles_of
from mlm_jax.text.tokenizer_json import GENERIC_CLASS, TOKENIZER_FILE, backend_from_json, rules_of
from mlm_jax.text.vocabulary import (
    BertRules,
    check_marks,
    effective,
    guess_rules,
    read_vocabulary,
    warn_of_contradiction,
    warn_of_guess,
)
from mlm_jax.text.wordpiece import CONTINUATION_PREFIX, WORD_LENGTH_LIMIT, bert_backend

VOCABULARY_FILE = "vocab.txt"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
TOKENIZER_FILES = (
    TOKENIZER_FILE,
    VOCABULARY_FILE,
    TOKENIZER_CONFIG_FILE,
    "added_tokens.json",
    "special_tokens_map.json",
    BYTE_LEVEL_FILE,
    MERGES_FILE,
)
"""All files that determine a tokenizer, except the `config.json` of a model, which may name its class."""

# Classes that build BERT's rules from the vocabulary and the settings of tokenizer_config.json.
_BERT_NAMES = ("Bert", "DistilBert", "Electra", "LayoutLM", "Lxmert", "MobileBert", "SqueezeBert")
_BERT_CLASSES = frozenset(f"{name}Tokenizer" for name in _BERT_NAMES)
_GENERIC_CLASSES = frozenset({"PreTrainedTokenizer", "TokenizersBackend", "PythonBackend"})
# Classes that build byte-level BPE from the vocabulary, the merges and add_prefix_space.
_BYTE_LEVEL_CLASS = "RobertaTokenizer"
# Tokens that it adds whatever else begins and ends a text.
_BYTE_LEVEL_ENDS = {"bos_token": "<s>", "eos_token": "</s>"}
# Class of the tokenizer of a model type if no file names it.
_BERT_MODEL_TYPES = (
    *("bert", "convbert", "distilbert", "electra", "ernie", "flava", "layoutlm", "lxmert", "megatron-bert"),
    *("mobilebert", "nomic_bert", "squeezebert", "visual_bert"),
)
_BYTE_LEVEL_MODEL_TYPES = ("data2vec-text", "ibert", "longformer", "roberta", "roberta-prelayernorm")
# Model types for which transformers ignores the class that a file names.
_GENERIC_MODEL_TYPES = ("modernbert", "modernbert-decoder", "nystromformer", "xlm-roberta-xl")

_SETTINGS = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}
"""Settings of BERT's rules, and their defaults in transformers. `strip_accents=None` is the value of do_lower_case."""

# Settings that transformers 4 knew for tokenizers in Python, which transformers 5 reads without effect.
_IGNORED = {"do_basic_tokenize": True, "never_split": None, "clean_text": True}
_REQUIRED = {
    "wordpieces_prefix": CONTINUATION_PREFIX,
    "word_tokenizer_type": "basic",
    "subword_tokenizer_type": "wordpiece",
    "split_special_tokens": False,
    "fast_tokenizer_files": [],
}
# Settings of KerasHub's tokenizer that change ids, in the presets of other tokenizers of WordPiece.
_KERAS_REQUIRED = {"split": True, "suffix_indicator": CONTINUATION_PREFIX, "oov_token": "[UNK]"}


def load_backend(
    path: Path, *, lowercase: bool | None, strip_accents: bool | None
) -> tuple[tokenizers.Tokenizer, Path, Roles]:
    """Returns the tokenizer at `path`, a file or a folder, the file that has its vocabulary, and its special tokens.

    Raises:
        InputError: a file is missing or damaged, files contradict each other, or the tokenizer is of another kind.
    """
    file = _find(path)
    given = BertRules(lowercase, strip_accents)
    # The vocabulary of a KerasHub preset is in assets/ or assets/tokenizer/.
    near = [file.parents[depth] / TOKENIZER_FILE for depth in (1, 2) if depth < len(file.parents)]
    for place in [file] if file.name == TOKENIZER_FILE else near if file.name == "vocabulary.txt" else []:
        if "registered_name" in (content := read_json_object(place)):
            return (*_read_keras_hub(place, content, given), BERT_ROLES)
    folder = _Folder(file.parent)
    folder.check(file)
    readers = {TOKENIZER_FILE: folder.read_tokenizer_json, BYTE_LEVEL_FILE: folder.read_byte_level}
    backend = readers.get(file.name, folder.read_vocabulary)(file, given)
    return backend, file, folder.roles(backend)


def _find(path: Path) -> Path:
    if path.is_dir():
        candidates = (path / TOKENIZER_FILE, path / VOCABULARY_FILE, path / BYTE_LEVEL_FILE)
        file = next((candidate for candidate in candidates if candidate.is_file()), None)
        if file is None:
            if (path / "assets").is_dir():
                raise InputError(f"{path}: no {TOKENIZER_FILE}, in which KerasHub stores its settings")
            expected = f"{TOKENIZER_FILE}, {VOCABULARY_FILE} or {BYTE_LEVEL_FILE}"
            raise InputError(f"{path}: no tokenizer here; expected {expected}")
        return file
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected {TOKENIZER_FILE}, {VOCABULARY_FILE} or a folder")
    return path


def _read_keras_hub(
    file: Path, content: Mapping[str, Any], given: BertRules
) -> tuple[tokenizers.Tokenizer, Path]:
    """Reads the tokenizer of a KerasHub preset."""
    kind = str(content["registered_name"]).rsplit(">", maxsplit=1)[-1]
    if kind != "BertTokenizer":
        raise InputError(f"{file}: {kind} is not supported; expected KerasHub's BertTokenizer")
    # The folder of assets has been named after the tokenizer since KerasHub 0.14.
    places = [file.parent / "assets" / name for name in ("tokenizer/vocabulary.txt", "vocabulary.txt")]
    vocabulary = next((place for place in places if place.is_file()), None)
    if vocabulary is None:
        raise InputError(f"{places[0]}: no such file; expected the vocabulary of {file}")
    stated = content.get("config") or {}
    if not isinstance(stated, dict):
        raise InputError(f"{file}: config must be an object")
    settings = {"lowercase": False, "strip_accents": False} | stated
    for name in ("lowercase", "strip_accents"):
        if not isinstance(settings[name], bool):
            raise InputError(f"{file}: {name} = {settings[name]!r}: must be true or false")
    for name, value in _KERAS_REQUIRED.items():
        if settings.get(name, value) != value:
            raise InputError(
                f"{file}: {name} = {settings[name]!r} is not supported: must be {value!r}, as in BERT"
            )
    lowercase = settings["lowercase"] if given.do_lower_case is None else given.do_lower_case
    strip = settings["strip_accents"] if given.strip_accents is None else given.strip_accents
    return bert_backend(read_vocabulary(vocabulary), lowercase=lowercase, strip_accents=strip), vocabulary


@dataclass(frozen=True)
class _Folder:
    """A folder with a tokenizer of transformers, ours, or Google's `vocab.txt`."""

    path: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """Content of `tokenizer_config.json`."""
        return read_json_object(self.path / TOKENIZER_CONFIG_FILE)

    @cached_property
    def class_name(self) -> str | None:
        """Class of transformers, without "Fast"; None if no file names it."""
        model = read_json_object(self.path / "config.json")
        name = self.config.get("tokenizer_class") or model.get("tokenizer_class")
        model_type = str(model.get("model_type") or "")
        if model_type in _GENERIC_MODEL_TYPES:
            name = "TokenizersBackend"
        if not name and model_type:
            name = "BertTokenizer" if model_type in _BERT_MODEL_TYPES else f"the tokenizer of {model_type!r}"
            name = _BYTE_LEVEL_CLASS if model_type in _BYTE_LEVEL_MODEL_TYPES else name
        return str(name).removesuffix("Fast") if name else None

    @property
    def is_bert(self) -> bool:
        return self.class_name in _BERT_CLASSES

    @property
    def is_byte_level(self) -> bool:
        return self.class_name == _BYTE_LEVEL_CLASS

    def check(self, file: Path) -> None:
        """Raises InputError if the tokenizer's class or its settings are not supported."""
        name = self.class_name or "BertTokenizer"
        where = f"{self.path / TOKENIZER_CONFIG_FILE}: {name}"
        code = self.config.get("auto_map")
        code = code.get("AutoTokenizer") if isinstance(code, dict) else code
        if code:
            raise InputError(f"{where} has its own code, {code}, which is not supported")
        if self.class_name and name not in _BERT_CLASSES | _GENERIC_CLASSES | {_BYTE_LEVEL_CLASS}:
            raise InputError(
                f"{file}: its class is {name}, which is not supported; expected BertTokenizer (BERT's WordPiece), "
                f"{_BYTE_LEVEL_CLASS} (byte-level BPE), or {GENERIC_CLASS} to read a {TOKENIZER_FILE} as it is"
            )
        if file.name == BYTE_LEVEL_FILE and name in _BERT_CLASSES and self.class_name:
            raise InputError(f"{file}: its class is {name}, which needs a {VOCABULARY_FILE}")
        if self.is_byte_level and file.name == VOCABULARY_FILE:
            raise InputError(f"{file}: its class is {name}, which needs a {BYTE_LEVEL_FILE} and its merges")
        if name in _GENERIC_CLASSES and file.name != TOKENIZER_FILE:
            raise InputError(
                f"{file}: its class is {name}, which needs a {TOKENIZER_FILE}; load the folder instead"
            )
        for setting, value in _REQUIRED.items():
            if self.config.get(setting) not in (None, value):
                raise InputError(
                    f"{where} with {setting} {self.config[setting]!r} is not supported; expected {value!r}"
                )
        for setting, value in _IGNORED.items():
            if self.config.get(setting) not in (None, value, []):
                warnings.warn(
                    f"{where}: {setting} is ignored, as in transformers 5: it applied to tokenizers in Python only",
                    stacklevel=2,
                )

    def rules(self, given: BertRules, fallback: BertRules) -> BertRules:
        """Returns the settings of the caller, of `tokenizer_config.json`, or else `fallback`."""
        values = {}
        for name in _SETTINGS:
            stated = self.config.get(name)
            if stated is not None and not isinstance(stated, bool):
                raise InputError(
                    f"{self.path / TOKENIZER_CONFIG_FILE}: {name} is {stated!r}; expected true or false"
                )
            sources = (getattr(given, name), stated, getattr(fallback, name))
            values[name] = next((value for value in sources if value is not None), None)
        return BertRules(**values)

    def read_vocabulary(self, file: Path, given: BertRules) -> tokenizers.Tokenizer:
        """Reads a `vocab.txt` with BERT's rules."""
        token_ids = read_vocabulary(file)
        check_marks(file, token_ids, self.class_name)
        described = self.path / TOKENIZER_FILE
        if self.is_bert or self.config or given.do_lower_case is not None:
            rules = self.rules(given, BertRules(**_SETTINGS))
            stated = self.rules(given, BertRules()).do_lower_case is not None
            warn_of_contradiction(
                file, token_ids, rules, None if stated else self.class_name or "BertTokenizer"
            )
        elif described.is_file() and (found := rules_of(read_json_object(described))):
            rules = self.rules(given, found)
        else:
            rules = self.rules(given, guess_rules(token_ids))
            warn_of_guess(file, token_ids, rules)
        return self._bert(token_ids, rules, {})

    def read_byte_level(self, file: Path, given: BertRules) -> tokenizers.Tokenizer:
        """Reads a `vocab.json` with its merges."""
        return self._byte_level(file, *read_vocabulary_and_merges(file), {}, given)

    def _byte_level(
        self,
        file: Path,
        token_ids: Mapping[str, int],
        merges: Sequence[Any],
        content: Mapping[str, Any],
        given: BertRules,
    ) -> tokenizers.Tokenizer:
        if given != BertRules():
            raise InputError(f"{file}: is not BERT's WordPiece, so casing cannot be set; expected none")
        space = self.config.get("add_prefix_space") or False
        if not isinstance(space, bool):
            where = self.path / TOKENIZER_CONFIG_FILE
            raise InputError(f"{where}: add_prefix_space is {space!r}; expected true or false")
        backend = byte_level_backend(file, token_ids, merges, add_prefix_space=space)
        self._add_tokens(backend, content)
        frame_texts(backend, self.roles(backend))
        return backend

    def read_tokenizer_json(self, file: Path, given: BertRules) -> tokenizers.Tokenizer:
        """Reads a `tokenizer.json`: as it is, or rebuilt from its vocabulary if transformers' class does so."""
        content = read_json_object(file)
        model = content.get("model")
        if self.is_byte_level:
            if not isinstance(model, dict) or not isinstance(model.get("merges"), list):
                raise InputError(
                    f"{file}: has no merges, but its class is {self.class_name}; expected byte-level BPE"
                )
            return self._byte_level(file, model.get("vocab") or {}, model["merges"], content, given)
        stated = rules_of(content)
        unknown = model.get("unk_token") if isinstance(model, dict) else None
        if unknown not in (None, "[UNK]") and (self.is_bert or stated is not None):
            raise InputError(
                f"{file}: its unknown token is {unknown!r}; expected [UNK], the only supported name"
            )
        if stated is None or content["model"].get("continuing_subword_prefix") != CONTINUATION_PREFIX:
            if self.is_bert:
                raise InputError(
                    f"{file}: is not BERT's WordPiece, but its class is {self.class_name}; set tokenizer_class to "
                    f"{GENERIC_CLASS} in {TOKENIZER_CONFIG_FILE} to read it as it is"
                )
            if given != BertRules():
                raise InputError(f"{file}: is not BERT's WordPiece, so casing cannot be set; expected none")
        elif self.is_bert or given != BertRules():
            return self._rebuild(file, content, given, stated)
        backend = backend_from_json(file, content)
        self._add_tokens(backend, content)
        return backend

    def _rebuild(
        self, file: Path, content: dict[str, Any], given: BertRules, stated: BertRules
    ) -> tokenizers.Tokenizer:
        # Fails for content that the library rejects.
        backend_from_json(file, content)
        rules = self.rules(given, BertRules(**_SETTINGS) if self.is_bert else stated)
        changed = [
            name
            for name in _SETTINGS
            if effective(rules)[name] != effective(stated)[name]
            and self.rules(given, BertRules()).__dict__[name] is None
            and not (name == "strip_accents" and rules.strip_accents is None)
        ]
        limit = content["model"].get("max_input_chars_per_word", WORD_LENGTH_LIMIT)
        if changed:
            warnings.warn(
                f"{file}: {changed[0]} is {effective(stated)[changed[0]]}, but {self.class_name} of transformers uses "
                f"{effective(rules)[changed[0]]} unless {TOKENIZER_CONFIG_FILE} sets it, and so does mlm_jax",
                stacklevel=2,
            )
        if limit != WORD_LENGTH_LIMIT and self.is_bert:
            warnings.warn(
                f"{file}: max_input_chars_per_word is {limit}, but {self.class_name} of transformers 5 reads "
                f"{WORD_LENGTH_LIMIT}; set tokenizer_class to {GENERIC_CLASS} to use {limit} there, too",
                stacklevel=2,
            )
        return self._bert(content["model"]["vocab"], rules, content, limit)

    def _bert(
        self,
        token_ids: Mapping[str, int],
        rules: BertRules,
        content: Mapping[str, Any],
        limit: int = WORD_LENGTH_LIMIT,
    ) -> tokenizers.Tokenizer:
        backend = bert_backend(
            token_ids,
            lowercase=rules.do_lower_case is not False,
            strip_accents=rules.strip_accents,
            chinese_characters=rules.tokenize_chinese_chars is not False,
            max_input_chars_per_word=limit,
        )
        self._add_tokens(backend, content)
        return backend

    def _add_tokens(self, backend: tokenizers.Tokenizer, content: Mapping[str, Any]) -> None:
        add_tokens(backend, self._token_files(content))

    def _token_files(self, content: Mapping[str, Any]) -> TokenFiles:
        special, added = (
            read_json_object(self.path / name) for name in ("special_tokens_map.json", "added_tokens.json")
        )
        config = _BYTE_LEVEL_ENDS | self.config if self.is_byte_level else self.config
        return TokenFiles(self.path / TOKENIZER_CONFIG_FILE, config, special, added, content)

    def roles(self, backend: tokenizers.Tokenizer) -> Roles:
        """Returns the special tokens that the files name.

        Raises:
            InputError: the vocabulary lacks one, or one of BERT's has another name.
        """
        stated, where = self._token_files({}).roles, str(self.path / TOKENIZER_CONFIG_FILE)
        if self.is_byte_level:
            stated = ROBERTA_ROLES.settings | {name: value for name, value in stated.items() if value}
        if not self.is_bert:
            return roles_of(stated, backend, where)
        for role, name in BERT_ROLES.settings.items():
            value = stated.get(role)
            value = value.get("content") if isinstance(value, Mapping) else value
            if value not in (None, name):
                raise InputError(
                    f"{where}: {role} is {value!r}; expected {name!r}, the only supported name of {self.class_name}"
                )
        return BERT_ROLES
