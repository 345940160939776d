"""Eight simulated devices, no silent rank promotion, and array annotations checked as the code runs.

Compiling is what tests would spend most of their time on. XLA compiles without optimizing, and compiled programs are
kept in a cache on disk that all sessions and their child processes share.
"""

import gc
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.xla_flags import QUICK

os.environ["JAX_PLATFORMS"] = "cpu"
# Workers inherit the flags; given twice, they would be other keys of the compilation cache than in a single process.
os.environ["XLA_FLAGS"] = " ".join(
    dict.fromkeys(
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 {QUICK}".split()
    )
)

# Workers and child processes inherit these. JAX's own keys tell apart versions and flags.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path("~/.cache/mlm_jax/tests").expanduser()))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# Data and a trained run that all workers share; made and removed by the process that starts them.
os.environ.setdefault("MLM_JAX_TEST_OWNER", str(os.getpid()))
os.environ["MLM_JAX_TEST_SESSION"] = os.environ.get("MLM_JAX_TEST_SESSION") or tempfile.mkdtemp(
    prefix="mlm_jax_tests_"
)

import jax
import pytest
from hypothesis import settings
from jax.experimental.compilation_cache import compilation_cache
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

# The same examples every time are the same programs, which the cache holds. `make test-release` draws others.
# No deadline: on a busy machine, any example may take longer than the last.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("random", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

SHARED_DATA = os.environ.get("MLM_JAX_SHARED_DATA")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves out the comparisons with other libraries, unless asked for: importing these takes half a minute."""
    selected = config.getoption("markexpr")
    wanted = ("peers" in selected and "not peers" not in selected) or selected == "release"
    if collection_path.name == "peers" and not wanted:
        return True
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if SHARED_DATA:
        return
    absent = pytest.mark.skip(reason="MLM_JAX_SHARED_DATA names no folder of real corpora and vocabularies")
    for item in items:
        if "shared_data" in getattr(item, "fixturenames", ()):
            item.add_marker(absent)


def pytest_collection_finish() -> None:
    # Tracing makes many objects and little garbage: collecting as rarely as this saves 6 % of the time.
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Forgets compiled programs between files, before they need more memory maps than Linux allows a process.

    At the limit, 65,530 by default, the next program ends in a segmentation fault.
    """
    if nextitem is not None and item.path != nextitem.path and _num_maps() > _MANY_MAPS:
        jax.clear_caches()
        gc.collect()


_MANY_MAPS = 20_000


def _num_maps() -> int:
    maps = Path("/proc/self/maps")
    return len(maps.read_bytes().splitlines()) if maps.exists() else 0


def pytest_unconfigure() -> None:
    if os.environ["MLM_JAX_TEST_OWNER"] == str(os.getpid()):
        shutil.rmtree(os.environ["MLM_JAX_TEST_SESSION"], ignore_errors=True)


@pytest.fixture
def no_compilation_cache() -> Iterator[None]:
    """XLA compiles, and says what it has to say, even if it has compiled the same program before."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    assert SHARED_DATA is not None
    return Path(SHARED_DATA).resolve()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MB, where the system allows mounting one."""
    disk = tmp_path / "small_disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.fixture
def default_signals() -> Iterator[None]:
    """Python's default handlers: jobs of nohup, and those in the background of a shell, inherit ignored signals."""
    defaults = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, handler) for number, handler in defaults.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
