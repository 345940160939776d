"""Contestant: `mlm-jax train --from`, as on a command line."""

from pathlib import Path
from statistics import median
from typing import Any

import jax

from mlm_jax.__main__ import run_command
from mlm_jax.errors import RunError
from mlm_jax.run.records import METRICS_FILE, read_records
from scripts.benchmark.contest import Round, serve
from scripts.benchmark.memory_of_process import peak_memory


def prepare(settings: dict[str, Any]) -> tuple[Round, dict[str, Any]]:
    """Trains and saves; reports the median rate without the first fifth of the steps. The round does nothing."""
    output = f"{settings['output']}-ours"
    flags = {
        "from": settings["source"],
        "data.path": settings["data"],
        "data.eval-path": "none",
        "data.sequence-length": settings["sequence_length"],
        "data.packing": "packed",
        "num-steps": settings["num_steps"],
        "batch-size": settings["batch_size"],
        "optimizer.learning-rate": settings["learning_rate"],
        "optimizer.warmup-steps": settings["warmup_steps"],
        "optimizer.weight-decay": settings["weight_decay"],
        "compute.dtype": settings["dtype"],
        "log-every": settings["log_every"],
        "checkpoint-every": settings["num_steps"],
        "seed": settings["seed"],
        "output-dir": output,
    }
    code = run_command(
        ["train", *(part for name, value in flags.items() for part in (f"--{name}", str(value)))]
    )
    if code:
        raise RunError(f"mlm-jax train: ended with {code}")
    rates = [record["real_tokens_per_second"] for record in read_records(Path(output) / METRICS_FILE)]
    memory = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return float, {
        "version": f"jax {jax.__version__}",
        "tokens_per_second": median(rates[len(rates) // 5 :]),
        "peak_memory": peak_memory(memory),
        "trained": output,
    }


if __name__ == "__main__":
    serve(prepare)
