"""Reads prepared data, the checkpoints of a run, or a model completely, and compares them with their checksums."""

from pathlib import Path

from mlm_jax.data.folders import open_folder
from mlm_jax.data.manifest import MANIFEST_FILE, PROGRESS_FILE
from mlm_jax.data.verification import verify_shards
from mlm_jax.errors import InputError
from mlm_jax.files.checksums import CHECKSUMS_FILE
from mlm_jax.store.format_registry import read_model
from mlm_jax.store.run_folder import is_run_folder, run_and_step, verify_checkpoints


def verify(name: str) -> str:
    """Compares a folder, or prepared data at a URL, with its checksums; returns a description of what was compared.

    Raises:
        InputError: the folder is none of the three, or is damaged. The message names the file, or the arrays of the
            checkpoint.
    """
    prepared = open_folder(name)
    if prepared.read(MANIFEST_FILE) is not None or prepared.read(PROGRESS_FILE) is not None:
        store = verify_shards(name)
        return f"prepared data, {len(store.shards)} shards, {store.num_tokens:,} tokens: intact"
    folder = Path(name)
    if not folder.is_dir():
        raise InputError(f"{name}: no such folder")
    run, step = run_and_step(folder)
    if is_run_folder(run):
        steps = verify_checkpoints(run, step)
        return f"run, checkpoints of steps {', '.join(map(str, steps))}: intact"
    read_model(folder)
    is_sealed = (folder / CHECKSUMS_FILE).is_file()
    return f"model: {'intact' if is_sealed else f'readable; it has no {CHECKSUMS_FILE} to compare with'}"
