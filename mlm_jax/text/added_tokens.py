"""Tokens that a user added to a vocabulary, such as entity markers, from the files in which transformers keeps them."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from mlm_jax.errors import InputError
from mlm_jax.text.wordpiece import SPECIAL_TOKENS

ROLES = dict(
    zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL_TOKENS, strict=True)
)
"""Keys of the five special tokens in `tokenizer_config.json`, and what BERT calls them."""

_EXTRA = ("additional_special_tokens", "extra_special_tokens")


def add_tokens(
    backend: tokenizers.Tokenizer,
    where: Path,
    config: Mapping[str, Any],
    numbered: Mapping[int, Any],
) -> None:
    """Adds tokens to `backend` in the order of transformers: first the `numbered` ones, then special ones by name.

    Args:
        backend: changed in place.
        where: folder or file that errors name.
        config: content of `tokenizer_config.json`, with the roles of special tokens.
        numbered: id → string, or object with content and flags, of each added token.

    Raises:
        InputError: a token would get another id than its file states, or one of BERT's five has another name.
    """
    special = list(_named(config, where))
    names = {*SPECIAL_TOKENS, *(token.content for token in special)}
    for token_id, value in sorted(numbered.items()):
        stated = isinstance(value, Mapping) and bool(value.get("special"))
        token = _token(value, where, special=stated or _content(value) in names)
        backend.add_tokens([token])
        if backend.token_to_id(token.content) != token_id:
            raise InputError(
                f"{where}: the added token {token.content!r} has id {token_id}, but it would be read as "
                f"{backend.token_to_id(token.content)}; expected ids that continue the vocabulary without gaps"
            )
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    backend.add_tokens([token for token in special if token.content not in added])


def numbered_tokens(
    config: Mapping[str, Any], added_json: Mapping[str, Any], tokenizer_json: Mapping[str, Any], where: Path
) -> dict[int, Any]:
    """Returns the added tokens that have ids: of `tokenizer_config.json`, or else of the other two files.

    Raises:
        InputError: an entry has no valid id.
    """
    try:
        if "added_tokens_decoder" in config:
            return {int(token_id): token for token_id, token in config["added_tokens_decoder"].items()}
        # transformers 5 compares these with normalized text.
        found = {
            int(token_id): {"content": content, "normalized": True}
            for content, token_id in added_json.items()
        }
        return found | {int(token["id"]): token for token in tokenizer_json.get("added_tokens") or ()}
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise InputError(
            f"{where}: its added tokens are damaged; expected an id and a content each"
        ) from error


def _named(config: Mapping[str, Any], where: Path) -> Iterable[AddedToken]:
    """Yields the special tokens that have a role (`mask_token`, …) or are listed as additional ones."""
    for role, value in config.items():
        if not role.endswith("_token") or value in (None, False, True):
            continue
        token = _token(value, where, special=True)
        if ROLES.get(role, token.content) != token.content:
            raise InputError(
                f"{where}: {role} is {token.content!r}; expected {ROLES[role]!r}, the only name that is supported"
            )
        yield token
    for name in _EXTRA:
        extra = config.get(name) or ()
        for value in extra.values() if isinstance(extra, Mapping) else extra:
            yield _token(value, where, special=True)


def _content(value: Any) -> Any:
    return value.get("content") if isinstance(value, Mapping) else value


def _token(value: Any, where: Path, *, special: bool) -> AddedToken:
    content = _content(value)
    if not isinstance(content, str) or not content:
        raise InputError(f"{where}: added token {value!r}; expected a string, or an object with its content")
    flags = dict(value) if isinstance(value, Mapping) else {}
    names = ("lstrip", "rstrip", "single_word", "normalized")
    return AddedToken(
        content, special=special, **{name: bool(flags[name]) for name in names if name in flags}
    )


def added_tokens_config(tokens: Mapping[int, AddedToken]) -> dict[str, Any]:
    """Returns the entries of `tokenizer_config.json` for added tokens; none if there are only BERT's five."""
    names = [token.content for token in tokens.values() if token.content not in SPECIAL_TOKENS]
    if not names:
        return {}
    flags = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    decoder = {
        str(token_id): {flag: getattr(token, flag) for flag in flags}
        for token_id, token in sorted(tokens.items())
    }
    special = [token.content for token in tokens.values() if token.special and token.content in names]
    return {"added_tokens_decoder": decoder} | ({"additional_special_tokens": special} if special else {})
