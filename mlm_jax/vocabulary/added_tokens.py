"""Tokens that a user added to a vocabulary, such as entity markers, from the files in which transformers keeps them."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from mlm_jax.errors import InputError
from mlm_jax.vocabulary.roles import Roles
from mlm_jax.vocabulary.tokenizer_classes import TokenizerClass
from mlm_jax.vocabulary.wordpiece import SPECIAL_TOKENS

_EXTRA = "extra_special_tokens"
_LIST = "additional_special_tokens"
_ROLES_IN_ORDER = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class TokenFiles:
    """Contents of the files that name added tokens; empty for a file that does not exist."""

    where: Path
    config: Mapping[str, Any]
    special_tokens_map: Mapping[str, Any]
    added_tokens: Mapping[str, Any]
    tokenizer_json: Mapping[str, Any]
    known_class: TokenizerClass | None = None
    """Class that the folder names; its special tokens need not be in any file."""

    @property
    def counted_map(self) -> Mapping[str, Any]:
        """Content of `special_tokens_map.json` that counts: none beside newer files, no list beside SentencePiece."""
        if "added_tokens_decoder" in self.config:
            return {}
        if self.known_class is None or self.known_class.kind != "unigram" or self.tokenizer_json:
            return self.special_tokens_map
        return {name: value for name, value in self.special_tokens_map.items() if name != _LIST}

    @property
    def stated(self) -> Mapping[str, Any]:
        """Settings and special tokens of the files."""
        return {**self.config, **self.counted_map}

    @property
    def roles(self) -> Mapping[str, Any]:
        """Settings and special tokens of the files, or else of the class."""
        if self.known_class is None or self.known_class.kind == "as_it_is":
            return self.stated
        roles = self.known_class.special_tokens | {
            name: value for name, value in self.stated.items() if value is not None
        }
        if self.known_class.mask_takes_space and isinstance(roles["mask_token"], str):
            roles["mask_token"] = {"content": roles["mask_token"], "lstrip": True}
        return roles


def add_tokens(backend: tokenizers.Tokenizer, files: TokenFiles) -> None:
    """Adds the tokens of `files` to `backend` in the order of transformers 5: first those with ids, then special ones.

    Raises:
        InputError: a token would get another id than its file states, or an entry is damaged.
    """
    of_map, counted = (each.get(_LIST) for each in (files.special_tokens_map, files.counted_map))
    if (
        of_map
        and not counted
        and "added_tokens_decoder" not in files.config
        and files.config.get(_LIST) is None
    ):
        warnings.warn(
            f"{files.where}: {_LIST} of special_tokens_map.json are ignored, as in transformers 5: "
            "tokenizer_config.json may name them",
            stacklevel=2,
        )
    special, stated = _special_tokens(files)
    names = {*SPECIAL_TOKENS, *(token.content for token in special)}
    for token_id, value in sorted(_numbered(files, stated).items()):
        is_special = isinstance(value, Mapping) and bool(value.get("special"))
        token = _token(value, files.where, special=is_special or str(name_of(value)) in names)
        backend.add_tokens([token])
        if backend.token_to_id(token.content) != token_id:
            raise InputError(
                f"{files.where}: the added token {token.content!r} has id {token_id}, but it would be read as "
                f"{backend.token_to_id(token.content)}; expected ids that continue the vocabulary without gaps"
            )
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    backend.add_tokens([token for token in special if token.content not in added])


def _numbered(files: TokenFiles, stated: set[str]) -> dict[int, Any]:
    """Returns the added tokens with ids: of `tokenizer_config.json`, or else of the other two files."""
    try:
        if "added_tokens_decoder" in files.config:
            decoder = files.config["added_tokens_decoder"]
            return {int(token_id): token for token_id, token in decoder.items()}
        # Ordinary ones are compared with normalized text.
        found = {
            int(token_id): {"content": content, "normalized": content not in stated}
            for content, token_id in files.added_tokens.items()
        }
        return found | {int(token["id"]): token for token in files.tokenizer_json.get("added_tokens") or ()}
    # OverflowError: JSON can express an infinite id.
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise InputError(
            f"{files.where}: its added tokens are damaged; expected an id and a content each"
        ) from error


def _special_tokens(files: TokenFiles) -> tuple[list[AddedToken], set[str]]:
    """Returns the special tokens that have a role (`mask_token`, …) or are listed, in the order of transformers.

    Also returns the contents of those that it knows when it reads `added_tokens.json`.
    """
    config, roles = files.config, files.roles
    values = [(name, roles.get(name)) for name in _ROLES_IN_ORDER]
    named, stated = [], set()
    for role, value in [*values, *_own_roles(files).items()]:
        if not isinstance(value, str | Mapping):
            if value is not None:
                raise InputError(f"{files.where}: {role} is {value!r}; expected a string")
            continue
        named.append(_token(value, files.where, special=True))
        if role in _ROLES_IN_ORDER and files.stated.get(role) is not None:
            stated.add(named[-1].content)
    extra, listed = config.get("extra_special_tokens"), _listed(files, config)
    if isinstance(extra, Mapping) and extra:
        extra = listed
    else:
        extra = listed if not extra and listed is not None else _listed(files, config, _EXTRA)
        stated |= {str(name_of(value)) for value in extra or ()}
    if isinstance(of_map := files.counted_map.get(_EXTRA), Mapping) and of_map:
        extra = None
    elif more := _listed(files, files.counted_map, _EXTRA):
        extra = [*(extra or ()), *(value for value in more if value not in (extra or ()))]
        stated |= {str(name_of(value)) for value in more}
    if extra is None:
        extra = _listed(files, roles)
    for value in extra or ():
        is_ordinary = isinstance(value, Mapping) and value.get("special") is False
        named.append(_token(value, files.where, special=not is_ordinary))
    return named, stated


def _own_roles(files: TokenFiles) -> dict[str, Any]:
    """Returns the special tokens with roles of their own, such as `image_token`, in the order of transformers."""
    in_config, in_map = (
        {
            name: each
            for name, each in source.items()
            if name.endswith("_token") and name not in _ROLES_IN_ORDER
        }
        for source in (files.config, files.counted_map)
    )
    named = {name: value for name, value in in_config.items() if isinstance(value, str)}
    extra = [source.get(_EXTRA) for source in (files.config, files.counted_map)]
    of_config, of_map = (value if isinstance(value, Mapping) else {} for value in extra)
    others = files.config.get("model_specific_special_tokens")
    named = named | dict(of_config) or (dict(others) if isinstance(others, Mapping) else {})
    objects = {name: value for name, value in in_config.items() if isinstance(value, Mapping)}
    return {**objects, **in_map, **named, **of_map}


def _listed(files: TokenFiles, source: Mapping[str, Any], name: str = _LIST) -> Sequence[Any] | None:
    """Returns a list of special tokens, or None if it is absent. Raises InputError if it is no list."""
    value = source.get(name)
    # transformers 4 wrote an empty object.
    if value == {}:
        return None
    if value is not None and not isinstance(value, list):
        raise InputError(f"{files.where}: {name} is {value!r}; expected a list of tokens")
    return value


def name_of(value: Any) -> Any:
    """Returns the name of a token that a file states as a string or as an object with a `content`."""
    return value.get("content") if isinstance(value, Mapping) else value


def _token(value: Any, where: Path, *, special: bool) -> AddedToken:
    content = name_of(value)
    # JSON can express lone surrogates, which Unicode text cannot.
    if not isinstance(content, str) or not content or content != content.encode("utf-8", "replace").decode():
        raise InputError(f"{where}: added token {value!r}; expected a string, or an object with its content")
    flags = dict(value) if isinstance(value, Mapping) else {}
    names = ("lstrip", "rstrip", "single_word", "normalized")
    return AddedToken(
        content, special=special, **{name: bool(flags[name]) for name in names if name in flags}
    )


def added_tokens_config(tokens: Mapping[int, AddedToken], roles: Roles) -> dict[str, Any]:
    """Returns the entries of `tokenizer_config.json` for added tokens; none if there are only those with a role."""
    names = [token.content for token in tokens.values() if token.content not in roles.names]
    if not names:
        return {}
    flags = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    decoder = {
        str(token_id): {flag: getattr(token, flag) for flag in flags}
        for token_id, token in sorted(tokens.items())
    }
    special = [token.content for token in tokens.values() if token.special and token.content in names]
    return {"added_tokens_decoder": decoder} | ({_LIST: special} if special else {})
