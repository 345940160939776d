"""The five special tokens of a tokenizer by their role, and the frame that they put around one text or two."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import tokenizers
from tokenizers.models import BPE, WordLevel, WordPiece
from tokenizers.processors import TemplateProcessing

from mlm_jax.errors import InputError
from mlm_jax.vocabulary.wordpiece import SPECIAL_TOKENS


@dataclass(frozen=True)
class Roles:
    """Names of the special tokens; the defaults are BERT's."""

    pad_token: str = SPECIAL_TOKENS[0]
    unk_token: str = SPECIAL_TOKENS[1]
    cls_token: str = SPECIAL_TOKENS[2]
    """Begins a row."""
    sep_token: str = SPECIAL_TOKENS[3]
    """Ends a row, and each of its documents."""
    mask_token: str = SPECIAL_TOKENS[4]

    @property
    def names(self) -> tuple[str, ...]:
        """The five names; a token may have two roles."""
        return (self.pad_token, self.unk_token, self.cls_token, self.sep_token, self.mask_token)

    @property
    def settings(self) -> dict[str, str]:
        """The names by their keys in `tokenizer_config.json`."""
        return asdict(self)


BERT_ROLES = Roles()
ROBERTA_ROLES = Roles("<pad>", "<unk>", "<s>", "</s>", "<mask>")
MPNET_ROLES = Roles("<pad>", "[UNK]", "<s>", "</s>", "<mask>")
ALBERT_ROLES = Roles("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")
ESM_ROLES = Roles("<pad>", "<unk>", "<cls>", "<eos>", "<mask>")
# Roles that no token may have together.
_APART = {
    "pad_token": ("cls_token", "sep_token", "mask_token"),
    "mask_token": ("cls_token", "sep_token", "unk_token"),
}
# What a file may call the tokens that begin and end a row.
_ALSO = {"cls_token": "bos_token", "sep_token": "eos_token"}


def roles_of(stated: Mapping[str, Any], backend: tokenizers.Tokenizer, where: str) -> Roles:
    """Returns the roles that the files of a tokenizer state.

    Args:
        stated: settings of `tokenizer_config.json` or `special_tokens_map.json`: names, or objects with a `content`.
            If they state none, the names of BERT or of RoBERTa are taken, whichever the vocabulary has.
        backend: the tokenizer, with its added tokens.
        where: begins the messages.

    Raises:
        InputError: a role has no name, the padding or the mask has another role, or unknown words get another token.
    """
    found: dict[str, str | None] = {}
    for role in BERT_ROLES.settings:
        values = [stated.get(key) for key in (role, _ALSO.get(role, role))]
        names = [value.get("content") if isinstance(value, Mapping) else value for value in values]
        found[role] = next((name for name in names if isinstance(name, str)), None)
    if not any(found.values()):
        vocabulary = set(backend.get_vocab(with_added_tokens=True))
        known = [roles for roles in (BERT_ROLES, ROBERTA_ROLES) if set(roles.names) <= vocabulary]
        found |= (known[0] if known else BERT_ROLES).settings
    # A byte-level vocabulary has no unknown tokens, and its files may name none.
    unknown = getattr(backend.model, "unk_token", None)
    found["unk_token"] = found["unk_token"] or unknown or found["pad_token"]
    if unknown not in (None, found["unk_token"]):
        raise InputError(
            f"{where}: unk_token is {found['unk_token']!r}: must be {unknown!r}, with which the vocabulary's model "
            "replaces unknown words"
        )
    missing = [role for role, name in found.items() if name is None]
    if missing:
        raise InputError(
            f"{where}: names no {' and no '.join(missing)}: must have all of {', '.join(BERT_ROLES.settings)}"
        )
    roles = Roles(**{role: str(name) for role, name in found.items()})
    shared = [
        (role, other)
        for role, others in _APART.items()
        for other in others
        if getattr(roles, role) == getattr(roles, other)
    ]
    # A byte-level vocabulary needs no token for unknown text, so the padding may stand for it.
    is_bytes = isinstance(backend.model, BPE) and (unknown is None or backend.model.byte_fallback)
    if roles.pad_token == roles.unk_token and not is_bytes:
        shared.append(("pad_token", "unk_token"))
    if shared:
        role, other = shared[0]
        raise InputError(
            f"{where}: {getattr(roles, role)!r} is its {role} and its {other}: must be two tokens, or rows could not "
            "be told from their padding and masks"
        )
    return roles


def check_roles(backend: tokenizers.Tokenizer, roles: Roles, where: str) -> None:
    """Checks the special tokens of a tokenizer that reads special tokens in text as text (`encode_special_tokens`).

    Raises:
        InputError: a special token is missing, unknown words cannot be encoded, or a special token other than the
            unknown one is an ordinary word, which would be read as padding or as a mask.
    """
    missing = [token for token in roles.names if backend.token_to_id(token) is None]
    if missing:
        raise InputError(
            f"{where}: no {' and no '.join(missing)} in the vocabulary; "
            f"expected all of its special tokens, {', '.join(roles.names)}"
        )
    model = backend.model
    if isinstance(model, WordPiece | WordLevel) and model.token_to_id(model.unk_token) is None:
        raise InputError(
            f"{where}: its model.vocab has no {model.unk_token!r}: must have the entry for unknown words, which no "
            "added token replaces"
        )
    for role, name in roles.settings.items():
        # A word such as PAD is a token's name in vocabularies without brackets.
        own_names = {key.removesuffix("_token") for key in (role, _ALSO.get(role, role))}
        if role == "unk_token" or not name.isalpha() or name.lower() in own_names:
            continue
        if backend.encode(name, add_special_tokens=False).ids == [backend.token_to_id(name)]:
            raise InputError(
                f"{where}: its {role} is {name!r}, which is a word of texts, too: must be a token that no text has"
            )


@dataclass(frozen=True)
class Frame:
    """Special tokens around two texts: [CLS] first `between` second [SEP]. One text is [CLS] text [SEP]."""

    between: tuple[int, ...]
    """Ids between the texts: [SEP] in BERT, `</s></s>` in RoBERTa."""
    second_segment: int
    """Segment of the second text and what follows it: 1 in BERT, 0 in RoBERTa."""


def frame_of(backend: tokenizers.Tokenizer, cls_id: int, sep_id: int, where: str) -> Frame:
    """Returns the frame that the tokenizer's post-processor makes.

    Raises:
        InputError: it frames one text otherwise than as [CLS] text [SEP].
    """
    empty = backend.encode("", add_special_tokens=False)
    one = backend.post_process(empty, None, True)
    if one.ids != [cls_id, sep_id]:
        raise InputError(
            f"{where}: frames a text with {one.tokens}: must be one token that begins it and one that ends it"
        )
    two = backend.post_process(empty, empty, True)
    return Frame(tuple(two.ids[1:-1]), two.type_ids[-1])


def set_frame(
    backend: tokenizers.Tokenizer, roles: Roles, *, separators: int = 1, second_segment: int = 1
) -> None:
    """Sets the post-processor: the frame of BERT, or one with another number of separators between two texts.

    The vocabulary must have the special tokens.
    """
    cls, sep = roles.cls_token, roles.sep_token
    between = " ".join([f"{sep}:0"] * separators)
    backend.post_processor = TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {between} $B:{second_segment} {sep}:{second_segment}",
        special_tokens=[(name, backend.token_to_id(name)) for name in dict.fromkeys((cls, sep))],
    )
