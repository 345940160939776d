"""Devices that are not attached: TPU topologies to compile for, and simulated CPU devices.

libtpu compiles for any topology on any x86 machine; it needs no chip.
"""

import importlib.util
import os
import re

import jax

from mlm_jax.errors import InputError

# Slice shapes of the two generations with a 2D torus: cloud.google.com/tpu/docs/v5e, /v6e.
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
# From cloud.google.com/tpu/docs/v5p, which also offers multiples of a cube of 4×4×4 up to 16×16×24.
_BELOW_A_CUBE = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
_LARGEST = (16, 16, 24)


def topology_devices(name: str, num_slices: int = 1) -> list[jax.Device]:
    """Returns devices to compile for: `num_slices` slices of the TPU topology `name`, for example "v5e:16x16".

    Raises:
        InputError: the topology does not exist, or libtpu is not installed.
    """
    _check_name(name)
    if num_slices < 1:
        raise InputError(f"num_slices = {num_slices}: must be at least 1")
    if importlib.util.find_spec("libtpu") is None:
        raise InputError("libtpu: not installed; install it with pip install 'mlm-jax[pod]'")
    # Set before libtpu is loaded. By default, it waits minutes for a metadata server that only Cloud TPU machines have,
    # locks out other processes, and writes to a log folder shared by all users of the machine.
    for variable, value in (
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_ACCELERATOR_TYPE", "v5litepod-16"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_LOG_DIR", "disabled"),
        ("TPU_STDERR_LOG_LEVEL", "3"),
        ("TPU_MIN_LOG_LEVEL", "3"),
    ):
        os.environ.setdefault(variable, value)
    from jax.experimental.topologies import get_topology_desc

    options: dict[str, object] = {"num_slices": num_slices} if num_slices > 1 else {}
    if name.endswith(":1x1"):
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        return list(get_topology_desc(platform="tpu", topology_name=name, **options).devices)
    except jax.errors.JaxRuntimeError as error:
        raise InputError(f"topology {name!r}: rejected by libtpu: {str(error).splitlines()[0]}") from error


def _check_name(name: str) -> None:
    """Raises InputError, which lists the valid names, unless Cloud TPU offers this topology."""
    parsed = re.fullmatch(r"(v5e|v6e|v5p):(\d+(?:x\d+)+)", name)
    if parsed is None:
        raise InputError(
            f"topology {name!r}: must be v5e:RxC, v6e:RxC or v5p:XxYxZ, for example v5e:16x16 or v5p:4x4x4"
        )
    generation, shape = parsed[1], parsed[2]
    if generation != "v5p":
        if shape not in _FLAT:
            raise InputError(f"topology {name!r}: {generation} comes as {', '.join(_FLAT)}")
        return
    sides = tuple(map(int, shape.split("x")))
    cubes = len(sides) == 3 and list(sides) == sorted(sides) and all(side and side % 4 == 0 for side in sides)
    fits = cubes and all(side <= largest for side, largest in zip(sides, _LARGEST, strict=True))
    if not (fits or shape in _BELOW_A_CUBE):
        raise InputError(
            f"topology {name!r}: v5p comes as {', '.join(_BELOW_A_CUBE)} and ascending multiples of 4 "
            f"from 4x4x4 to {'x'.join(map(str, _LARGEST))}"
        )


def simulated_devices(count: int) -> list[jax.Device]:
    """Returns `count` simulated CPU devices; call it before jax initializes its backends.

    Raises:
        InputError: `count` is below 1.
    """
    if count < 1:
        raise InputError(f"devices = {count}: must be at least 1")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count)
    return jax.devices("cpu")
