"""Reads prepared data, the checkpoints of a run, or a model completely, and compares them with their checksums."""

from pathlib import Path

from mlm_jax.data.verification import verify_shards
from mlm_jax.errors import InputError
from mlm_jax.files.checksums import CHECKSUMS_FILE, unlisted_files
from mlm_jax.formats.tensor_checks import some
from mlm_jax.preparation.prepare import EVALUATION_FOLDER
from mlm_jax.shards.folders import open_folder
from mlm_jax.shards.manifest import MANIFEST_FILE, PROGRESS_FILE
from mlm_jax.store.format_registry import read_model
from mlm_jax.store.run_folder import is_run_folder, run_and_step, verify_checkpoints


def verify(name: str) -> str:
    """Compares a folder, or prepared data at a URL, with its checksums; returns a description of what was compared.

    Prepared data include those that were held out for evaluation.

    Raises:
        InputError: the folder is none of the three, or is damaged. The message names the file, or the arrays of the
            checkpoint.
    """
    if _is_prepared(name):
        # The documents that `mlm-jax prepare --eval-share` held out.
        held_out = f"{name.rstrip('/')}/{EVALUATION_FOLDER}"
        described = [
            _verify_prepared(each) for each in (name, held_out) if each == name or _is_prepared(each)
        ]
        return f"prepared data, {f'; {EVALUATION_FOLDER}, '.join(described)}: intact"
    folder = Path(name)
    if not folder.is_dir():
        raise InputError(f"{name}: no such folder")
    run, step = run_and_step(folder)
    if is_run_folder(run):
        steps = verify_checkpoints(run, step)
        return f"run, checkpoints of steps {', '.join(map(str, steps))}: intact"
    read_model(folder)
    if not (folder / CHECKSUMS_FILE).is_file():
        return f"model: readable; it has no {CHECKSUMS_FILE} to compare with"
    added = unlisted_files(folder)
    return f"model: intact{f', except for files that were added to it: {some(added)}' if added else ''}"


def _is_prepared(name: str) -> bool:
    folder = open_folder(name)
    return any(folder.read(file) is not None for file in (MANIFEST_FILE, PROGRESS_FILE))


def _verify_prepared(name: str) -> str:
    store = verify_shards(name)
    return f"{len(store.shards)} shards, {store.num_tokens:,} tokens"
