"""Training within the process of the tests."""

from functools import partial

import jax
import pytest

from mlm_jax.parallel.sharding import make_mesh
from mlm_jax.run import trainer


@pytest.fixture
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """`train` in this process, on the first of its eight devices."""
    monkeypatch.setattr(trainer, "make_mesh", partial(make_mesh, devices=jax.devices()[:1]))
