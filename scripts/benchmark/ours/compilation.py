"""A contestant: compiling our train step, again and again."""

from dataclasses import replace
from typing import Any

import jax

from mlm_jax.parallel.sharding import make_mesh
from mlm_jax.step.program import build_program
from scripts.benchmark.contest import Round, serve
from scripts.benchmark.ours.step import step_config
from scripts.benchmark.step_work import StepWork


def prepare(settings: dict[str, Any]) -> tuple[Round, dict[str, Any]]:
    """Of a model of `layers` layers, traced and compiled from nothing; units are compilations."""
    work = StepWork(**settings["work"])
    config = step_config(work)
    config = replace(config, model=replace(config.model, num_layers=settings["layers"]))
    mesh = make_mesh(config.mesh, jax.devices()[:1])

    def compile_once() -> float:
        jax.clear_caches()
        build_program(config, work.masking, mesh).compiled_train  # noqa: B018
        return 1.0

    return compile_once, {"version": f"jax {jax.__version__}"}


if __name__ == "__main__":
    serve(prepare)
