"""Page faults of a process that uses the same buffers repeatedly."""

import pytest

from tests.run_small import run_python

STEPS = """
import resource, statistics, sys
from mlm_jax.run.host_memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
import jax, jax.numpy as jnp
def step(x):
    columns = jnp.stack([x] * 8, axis=1)
    return (columns @ columns.T) @ x / x.size
step = jax.jit(step)
x = jnp.ones(3200)
for _ in range(20):
    x = step(x).block_until_ready()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
taken = []
for _ in range(9):
    before = faults()
    x = step(x).block_until_ready()
    taken.append(faults() - before)
print(statistics.median(taken))
"""


@pytest.mark.parametrize(("memory", "least", "most"), [("kept", 0, 1000), ("given back", 9_000, 10**6)])
def test_a_step_reuses_the_memory_of_the_previous_one(memory: str, least: int, most: int) -> None:
    """A buffer of 3,200 × 3,200 float32 numbers has 10,000 pages; sometimes a free block no longer fits."""
    ended = run_python(STEPS, memory)
    assert ended.returncode == 0, ended.stderr
    assert least <= float(ended.stdout) <= most
