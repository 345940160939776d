"""The shipped configs, importable from anywhere: `from mlm_jax.configs.bert_tiny_wiki import config`.

In a clone they are in the top-level folder `configs/`, which replaces this file in an installed package.
"""

from pathlib import Path

__path__ = [str(Path(__file__).parents[2] / "configs")]
