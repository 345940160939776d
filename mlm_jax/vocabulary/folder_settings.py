"""What the files beside a vocabulary say of its tokenizer: the class of transformers, settings and special tokens."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from mlm_jax.errors import InputError
from mlm_jax.files.json_files import read_json_object
from mlm_jax.vocabulary.added_tokens import TokenFiles
from mlm_jax.vocabulary.byte_level import BYTE_LEVEL_FILE, MERGES_FILE
from mlm_jax.vocabulary.roles import Roles, roles_of
from mlm_jax.vocabulary.tokenizer_classes import CLASSES, Kind, TokenizerClass, class_of
from mlm_jax.vocabulary.tokenizer_json import GENERIC_CLASS, TOKENIZER_FILE
from mlm_jax.vocabulary.vocab_txt import BertRules
from mlm_jax.vocabulary.wordpiece import CONTINUATION_PREFIX

VOCABULARY_FILE = "vocab.txt"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
SENTENCEPIECE_FILES = ("sentencepiece.bpe.model", "spiece.model")
SENTENCEPIECE_SUFFIXES = (".model", ".spm")

RULES = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}
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
_READ_FROM: dict[Kind, tuple[str, ...]] = {
    "word_piece": (TOKENIZER_FILE, VOCABULARY_FILE),
    "byte_level": (TOKENIZER_FILE, BYTE_LEVEL_FILE),
    "unigram": (TOKENIZER_FILE, *SENTENCEPIECE_FILES),
    "characters": (VOCABULARY_FILE,),
    "as_it_is": (TOKENIZER_FILE,),
}
_NEEDS: dict[Kind, str] = {
    "word_piece": f"a {VOCABULARY_FILE}",
    "byte_level": f"a {BYTE_LEVEL_FILE} and its {MERGES_FILE}",
    "unigram": f"a {TOKENIZER_FILE} or a SentencePiece model ({', '.join(SENTENCEPIECE_FILES)})",
    "characters": f"a {VOCABULARY_FILE}",
    "as_it_is": f"a {TOKENIZER_FILE}",
}


@dataclass(frozen=True)
class FolderSettings:
    """A folder with a tokenizer of transformers, ours, or Google's `vocab.txt`."""

    path: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """Content of `tokenizer_config.json`."""
        return read_json_object(self.path / TOKENIZER_CONFIG_FILE)

    @cached_property
    def tokenizer_json(self) -> dict[str, Any]:
        """Content of `tokenizer.json`."""
        return read_json_object(self.path / TOKENIZER_FILE)

    @cached_property
    def class_name(self) -> str | None:
        """Class of transformers, without "Fast"; None if no file names it."""
        return class_of(self.config, read_json_object(self.path / "config.json"))

    @property
    def known_class(self) -> TokenizerClass | None:
        """The class, if a file names it."""
        return CLASSES.get(self.class_name) if self.class_name else None

    @property
    def kind(self) -> Kind | None:
        """Kind of the class, if a file names it."""
        return self.known_class.kind if self.known_class else None

    @property
    def where(self) -> str:
        """Begins the messages about settings."""
        return str(self.path / TOKENIZER_CONFIG_FILE)

    def files(self) -> list[Path]:
        """Returns the files of the folder that may hold the vocabulary, the preferred one first."""
        everything = (TOKENIZER_FILE, VOCABULARY_FILE, BYTE_LEVEL_FILE, *SENTENCEPIECE_FILES)
        names = dict.fromkeys((*(_READ_FROM[self.kind] if self.kind else ()), *everything))
        return [self.path / name for name in names if (self.path / name).is_file()]

    def check(self, file: Path) -> None:
        """Raises InputError if the tokenizer's class or its settings are not supported, or it cannot read `file`."""
        name = self.class_name or "BertTokenizer"
        code = self.config.get("auto_map")
        code = code.get("AutoTokenizer") if isinstance(code, dict) else code
        if code:
            raise InputError(f"{self.where}: {name} has its own code, {code}, which is not supported")
        if self.class_name and self.known_class is None:
            known = [other for other, build in CLASSES.items() if build.kind != "as_it_is"]
            raise InputError(
                f"{file}: its class is {name}, which is not supported; expected {', '.join(known)}, or "
                f"{GENERIC_CLASS} to read a {TOKENIZER_FILE} as it is"
            )
        self._check_file(file)
        for setting, value in _REQUIRED.items():
            if self.config.get(setting) not in (None, value):
                raise InputError(
                    f"{self.where}: {name} with {setting} {self.config[setting]!r} is not supported; expected {value!r}"
                )
        for setting, value in _IGNORED.items():
            if self.config.get(setting) not in (None, value, []):
                warnings.warn(
                    f"{self.where}: {name}: {setting} is ignored, as in transformers 5: it applied to tokenizers in "
                    "Python only",
                    stacklevel=2,
                )

    def _check_file(self, file: Path) -> None:
        """Raises InputError if the class reads no such file; a file may have any name if its kind is the usual one."""
        is_sentencepiece = file.suffix in SENTENCEPIECE_SUFFIXES
        if self.kind is None:
            if is_sentencepiece:
                readers = [name for name, build in CLASSES.items() if build.kind == "unigram"]
                raise InputError(
                    f"{file}: no file beside it names the class that numbers its pieces; write "
                    f'{{"tokenizer_class": "{readers[0]}"}}, {" or ".join(readers[1:])} into {TOKENIZER_CONFIG_FILE}'
                )
            return
        named = {TOKENIZER_FILE, BYTE_LEVEL_FILE}
        actual = file.name if file.name in named else "sentencepiece" if is_sentencepiece else VOCABULARY_FILE
        readable = {
            name if not name.endswith(".model") else "sentencepiece" for name in _READ_FROM[self.kind]
        }
        if actual not in readable:
            raise InputError(f"{file}: its class is {self.class_name}, which needs {_NEEDS[self.kind]}")

    def flag(self, name: str) -> bool | None:
        """Returns a setting of `tokenizer_config.json`, or None. Raises InputError if it is neither true nor false."""
        stated = self.config.get(name)
        if stated is not None and not isinstance(stated, bool):
            raise InputError(f"{self.where}: {name} is {stated!r}; expected true or false")
        return stated

    def rules(self, given: BertRules, fallback: BertRules) -> BertRules:
        """Returns the settings of the caller, of `tokenizer_config.json`, or else `fallback`."""
        values = {}
        for name in RULES:
            sources = (getattr(given, name), self.flag(name), getattr(fallback, name))
            values[name] = next((value for value in sources if value is not None), None)
        return BertRules(**values)

    def token_files(self, content: Mapping[str, Any]) -> TokenFiles:
        """Returns the contents of all files that name special or added tokens, among them a `tokenizer.json`."""
        special, added = (
            read_json_object(self.path / name) for name in ("special_tokens_map.json", "added_tokens.json")
        )
        return TokenFiles(Path(self.where), self.config, special, added, content, self.known_class)

    def roles(self, backend: tokenizers.Tokenizer) -> Roles:
        """Returns the special tokens that the files name, or else those of the class.

        Raises:
            InputError: a role has no name, or two roles have a name that they must not share.
        """
        return roles_of(self.token_files({}).roles, backend, self.where)
