"""Joins the processes of a job with `jax.distributed`.

Reports errors at the start of a job in one line; JAX's runtime would abort the process.
"""

import os
import socket
import sys
import threading
import time
from typing import Any

import jax
from jax._src.clusters import ClusterEnv

from mlm_jax.config import DistributedConfig
from mlm_jax.errors import EXIT_BAD_INPUT, InputError
from mlm_jax.parallel.abort import on_abort


def join(config: DistributedConfig) -> None:
    """Joins the job described by the config or the scheduler; without a job, this process runs alone.

    `jax.distributed` detects Slurm, Open MPI, Kubernetes and Cloud TPU. If some process does not join within
    `timeout_seconds`, this process prints an error and exits with 2. Does nothing if it has already joined.

    Raises:
        InputError: nothing answers at the coordinator's address, the port of process 0 is in use, or JAX has already
            started.
    """
    if jax.distributed.is_initialized():
        return
    # The service would swallow a SIGTERM before the run handles signals; the run itself agrees on the step to stop at.
    jax.config.update("jax_enable_preemption_service", False)
    end = time.monotonic() + config.timeout_seconds
    # The runtime aborts the process at its own limits, so they must be longer than ours.
    limits: dict[str, Any] = {
        "initialization_timeout": 2 * config.timeout_seconds,
        "heartbeat_timeout_seconds": 3 * config.timeout_seconds,
    }
    if config.coordinator is None:
        job = "the job of the scheduler"
        place: dict[str, Any] = {}
    else:
        job = f"distributed.coordinator = {config.coordinator}"
        place = {
            "coordinator_address": config.coordinator,
            "num_processes": config.num_processes,
            "process_id": config.process_id,
            "cluster_detection_method": "deactivate",
        }
        if config.process_id == 0:
            _require_free(config.coordinator)
        else:
            _require_answer(config.coordinator, config.timeout_seconds)

    def give_up() -> None:
        message = (
            f"{job}: some processes did not join: all must start within {config.timeout_seconds} s with the same "
            "coordinator and num_processes, and each with its own process_id"
        )
        print(f"error: {message}", file=sys.stderr, flush=True)
        os._exit(EXIT_BAD_INPUT)

    too_late = threading.Timer(end - time.monotonic(), give_up)
    too_late.daemon = True
    too_late.start()
    try:
        with on_abort(give_up):
            jax.distributed.initialize(**limits, **place)
    except ValueError as error:
        if "coordinator_address should be defined" not in str(error):
            raise
    except RuntimeError as error:
        if "must be called before" not in str(error):
            raise
        _require_alone(config)
    finally:
        too_late.cancel()


def _require_alone(config: DistributedConfig) -> None:
    """Raises InputError if this process, in which JAX has already started, belongs to a job of several processes."""
    detected = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, 1)[1]
    if (config.num_processes or detected or 1) > 1:
        raise InputError(
            "the config used JAX before the processes of the job had joined: pass --distributed.coordinator, "
            "--distributed.num-processes and --distributed.process-id on the command line or, under a scheduler, call "
            "mlm_jax.parallel.distributed.join(DistributedConfig()) first"
        )


def _require_free(address: str) -> None:
    with socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET) as probe:
        # The runtime sets the same option: a port that a job has just released counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", _port(address)))
        except OSError as error:
            raise InputError(
                f"distributed.coordinator = {address}: {error.strerror}: must be a free port on this machine"
            ) from error


def _require_answer(address: str, seconds: int) -> None:
    """Waits until process 0, which may start after the others, listens at `address`."""
    host, end = address.rpartition(":")[0].strip("[]"), time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(
                (host, _port(address)), timeout=1 + max(end - time.monotonic(), 0)
            ).close()
            return
        except OSError as error:
            if time.monotonic() > end - 1:
                raise InputError(
                    f"distributed.coordinator = {address}: {error.strerror or error} for {seconds} s: "
                    "must be the address at which process 0 listens"
                ) from error
        time.sleep(0.2)


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])
