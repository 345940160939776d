"""Prepares the parts of a corpus as tasks of a Ray cluster.

A task is one part, prepared as by a job of a job array: it reads its files and writes its shards itself, so no text
passes through Ray. If a worker or its machine dies, Ray runs the task again, which continues after the last shard.
"""

import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

from mlm_jax.corpus.documents import STANDARD_INPUT
from mlm_jax.corpus.file_systems import path_names
from mlm_jax.errors import InputError, RunError, one_line
from mlm_jax.files.folder_lock import FolderInUseError
from mlm_jax.preparation.division import Part
from mlm_jax.preparation.prepare import Preparation, prepare
from mlm_jax.shards.folders import is_url
from mlm_jax.text.tokenizer import Tokenizer

# Ray may run a task again, and a user the command, before the previous process has ended.
_WAIT_SECONDS = 60.0


def prepare_parts(
    paths: Sequence[str | os.PathLike[str]],
    tokenizer: Tokenizer,
    output: str | os.PathLike[str],
    *,
    num_parts: int,
    workers: int | None = None,
    **settings: Any,
) -> Iterator[tuple[Part, Preparation]]:
    """Prepares all parts, and yields each when it is finished; then call `merge_parts`.

    The cluster is that of `ray.init()`: the one that the process is connected to or $RAY_ADDRESS names, or this
    machine. Its machines need mlm_jax, and the files of `paths` and the folder `output` under the same names. A task
    takes `workers` cores, by default one. `settings` are those of `prepare`. Parts that an earlier call finished are
    not prepared again.

    Raises:
        InputError: Ray is not installed; or as `prepare`, for the first part that fails. The others are stopped.
        RunError: as `prepare`, or Ray gave up a part because its workers died again and again. Finished shards are kept
            for the next call.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError("--engine ray: needs Ray: pip install 'mlm-jax[ray]'") from error
    parts = [Part(index, num_parts) for index in range(max(num_parts, 1))]
    names = [_absolute(path) for path in path_names(paths)]
    ray.init(ignore_reinit_error=True)
    settings["workers"] = 1 if workers is None else workers
    task = ray.remote(_prepare_part).options(num_cpus=max(settings["workers"], 1))
    common = ray.put((names, tokenizer, _absolute(os.fspath(output)), settings))
    running = {task.remote(part, common): part for part in parts}
    try:
        while running:
            (finished,), _ = ray.wait(list(running))
            part = running.pop(finished)
            try:
                preparation = ray.get(finished)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, InputError | RunError):
                    raise error.cause from None
                raise
            except ray.exceptions.RayError as error:
                raise RunError(
                    f"{output}/{part.folder}: Ray gave it up: {one_line(error).rstrip('.')}; rerun the same command "
                    "to resume"
                ) from error
            yield part, preparation
    finally:
        for reference in running:
            ray.cancel(reference)


def _absolute(path: str) -> str:
    """Returns a path that means the same in the processes of Ray, which have other working folders."""
    return path if path == STANDARD_INPUT or is_url(path) else os.path.abspath(path)


def _prepare_part(part: Part, common: tuple[list[str], Tokenizer, str, dict[str, Any]]) -> Preparation:
    paths, tokenizer, output, settings = common
    deadline = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            return prepare(paths, tokenizer, output, part=part, **settings)
        except FolderInUseError:
            if time.monotonic() > deadline:
                raise
        time.sleep(1.0)
