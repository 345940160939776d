"""JSON from files that may be damaged or hostile: a value, or an InputError that names the file. And JSON to write."""

import json
import math
import re
from pathlib import Path
from typing import Any

from mlm_jax.errors import InputError, one_line
from mlm_jax.files.git_lfs import check_no_pointer_file

# The largest JSON files of models are tokenizers of about 40 MB.
_LARGEST_BYTES = 1 << 28
# Far deeper than any file that programs write, and far below the depth at which Python's recursion fails.
_DEEPEST = 100


def parse_json(text: str | bytes, where: object) -> Any:
    """Parses JSON. `where`, such as a file or `file:line`, begins the message of an error.

    A byte order mark, with which editors on Windows begin files, is skipped, as RFC 8259 allows.

    Raises:
        InputError: the text is not JSON in UTF-8, is nested more than 100 levels deep, or has half of a pair of
            surrogates, which no text can contain.
    """
    try:
        value = json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not valid JSON: invalid UTF-8 at byte {error.start}") from error
    except ValueError as error:
        raise InputError(f"{where}: not valid JSON: {one_line(error)}") from error
    except RecursionError as error:
        raise _too_deep(where) from error
    level = [value]
    for _ in range(_DEEPEST + 1):
        level = [child for item in level if isinstance(item, dict | list) for child in _children(item)]
        if not level:
            _check_surrogates(text, value, where)
            return value
    raise _too_deep(where)


def read_json(file: Path) -> Any:
    """Returns the value in a JSON file.

    Raises:
        InputError: the file is larger than 256 MB, or see `parse_json`.
        OSError: the file cannot be read.
    """
    check_no_pointer_file(file)
    size = file.stat().st_size
    if size > _LARGEST_BYTES:
        raise InputError(
            f"{file}: {size / 1e6:.0f} MB of JSON: must be at most {_LARGEST_BYTES / 1e6:.0f} MB"
        )
    return parse_json(file.read_bytes(), file)


def read_json_object(file: Path) -> dict[str, Any]:
    """Returns the object in a JSON file, or an empty dict if there is no such file.

    Raises:
        InputError: the file contains another value, or see `read_json`.
    """
    value = read_json(file) if file.is_file() else {}
    if not isinstance(value, dict):
        raise InputError(f"{file}: must contain a JSON object")
    return value


def json_text(value: Any, *, indent: int | None = None, ensure_ascii: bool = True) -> str:
    """Returns a value as JSON, in which NaN and infinity, which JSON lacks, are null."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=ensure_ascii, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _children(item: dict[str, Any] | list[Any]) -> Any:
    return item.values() if isinstance(item, dict) else item


def _check_surrogates(text: str | bytes, value: Any, where: object) -> None:
    # Escapes of surrogates are rare, so that few texts are searched for unpaired ones.
    pattern = r"\\u[dD][89a-fA-F]"
    found = re.search(pattern, text) if isinstance(text, str) else re.search(pattern.encode(), text)
    if found:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{where}: not valid JSON: an unpaired surrogate, which is no character"
            ) from error


def _too_deep(where: object) -> InputError:
    return InputError(f"{where}: not valid JSON: nested more than {_DEEPEST} levels deep")
