"""Eight simulated devices, no silent rank promotion, and array annotations checked as the code runs.

XLA compiles without optimising: the models are small, and compiling them is what the tests spend their time on. For the
same reason compiled programs are kept in a cache on disk, which all sessions and their child processes share.
"""

import os
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
    ]
)

# Workers and child processes inherit these. JAX's own keys tell apart versions and flags.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path("~/.cache/mlm_jax/tests").expanduser()))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_numpy_rank_promotion", "raise")
install_import_hook(
    [
        "mlm_jax.masking",
        "mlm_jax.model",
        "mlm_jax.step.train_step",
        "mlm_jax.step.update",
    ],
    "beartype.beartype",
)

SHARED_DATA = os.environ.get("MLM_JAX_SHARED_DATA")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if SHARED_DATA:
        return
    absent = pytest.mark.skip(reason="MLM_JAX_SHARED_DATA names no folder of real corpora and vocabularies")
    for item in items:
        if "shared_data" in item.keywords:
            item.add_marker(absent)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    assert SHARED_DATA is not None
    return Path(SHARED_DATA).resolve()
