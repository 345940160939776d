"""Folder of everything that is kept between runs: downloads, copies of remote shards, indices."""

import os
from pathlib import Path


def home() -> Path:
    """Returns `$MLM_JAX_HOME`, by default ~/.cache/mlm_jax."""
    return Path(os.environ.get("MLM_JAX_HOME") or "~/.cache/mlm_jax").expanduser()
