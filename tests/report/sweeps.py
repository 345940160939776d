"""SweepState folders as the runner writes them, with curves that are computed instead of trained."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

STEPS, LOG_EVERY, EVAL_EVERY = 1000, 10, 100
# Final evaluation losses by trial and seed; None is a run that failed, a missing seed one that was not started.
Losses = Mapping[str, Mapping[int, float | None]]

LOSSES: Losses = {
    "rate_15": {0: 2.10, 1: 2.14, 2: 2.12},
    "rate_30": {0: 2.05, 1: 2.10, 2: 2.06},
    "rate_50": {0: 2.13, 1: 2.09, 2: 2.13},
}


def settings_of(number: int) -> dict[str, Any]:
    """The settings of the trial with this number."""
    masking = {"mask_selection_rate": [0.15, 0.3, 0.5][number % 3], "unit": "token"}
    return {
        "output_dir": "",
        "seed": 0,
        "masking": masking,
        "optimizer": {"learning_rate": 1e-3 * (1 + number // 3), "freeze": []},
        "num_steps": STEPS,
    }


def write_plan(folder: Path, trials: Sequence[str], seeds: Sequence[int], /, **changes: Any) -> None:
    plan: dict[str, Any] = {
        "name": "mask_rate",
        "source": "configs/ablations/mask_rate.py",
        "description": "How many tokens to mask.",
        "baseline": trials[0],
        "seeds": list(seeds),
        "trials": {name: settings_of(number) for number, name in enumerate(trials)},
    }
    plan |= changes
    fingerprints = {"training": "1f", "evaluation": "2e"}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sweep.json").write_text(
        json.dumps({"data": dict.fromkeys(plan["trials"], fingerprints), **plan})
    )


def write_sweep(folder: Path, losses: Losses = LOSSES, **changes: Any) -> Path:
    seeds = sorted({seed for trial in losses.values() for seed in trial})
    write_plan(folder, list(losses), seeds, **changes)
    for number, (trial, finals) in enumerate(losses.items()):
        for seed, final in finals.items():
            write_run(folder / trial / f"seed_{seed}", settings_of(number) | {"seed": seed}, final)
    return folder


def write_run(folder: Path, config: dict[str, Any], final: float | None) -> None:
    """A run that ends with this evaluation loss, or with None one that failed at half of its steps."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    last = STEPS if final is not None else STEPS // 2
    random = np.random.default_rng(config["seed"])
    training = [
        step_record(step, _loss(step, 2.2 if final is None else final) + float(random.normal(0, 0.05)))
        for step in range(LOG_EVERY, last + 1, LOG_EVERY)
    ]
    evaluations = [
        evaluation_record(step, _loss(step, 2.2 if final is None else final))
        for step in range(EVAL_EVERY, last + 1, EVAL_EVERY)
    ]
    write_lines(folder / "metrics.jsonl", training)
    write_lines(folder / "eval.jsonl", evaluations)
    write_outcome(
        folder, last, None if final is not None else "step 500: 20 steps in a row | had a <loss> of NaN"
    )


def _loss(step: int, final: float) -> float:
    """Falls from 9 to exactly `final` at the last step."""
    return final + (9.0 - final) * (float(np.exp(-6 * step / STEPS)) - float(np.exp(-6)))


def step_record(step: int, loss: float | None, real_tokens: int = 230) -> dict[str, Any]:
    """With as many real tokens a step, and 0.03 s."""
    rates = {"tokens_per_second": 256 / 0.03, "real_tokens_per_second": real_tokens / 0.03}
    record = {"step": step, "epoch": step / 400, "loss": loss, "mlm_accuracy": 0.5, "masked_tokens": 38}
    record |= {"grad_norm": 1.5, "learning_rate": 1e-3, **rates}
    return record | {"sequences_per_second": 8 / 0.03, "step_seconds": 0.03, "mfu": None}


def evaluation_record(step: int, loss: float | None) -> dict[str, Any]:
    record = {"step": step, "epoch": step / 400, "mlm_loss": loss, "mlm_accuracy": 0.6}
    return record | {"perplexity": None if loss is None else float(np.exp(loss)), "masked_tokens": 5000}


def write_lines(file: Path, records: Sequence[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_outcome(folder: Path, step: int, error: str | None = None, **changes: Any) -> None:
    outcome = {
        "status": "failed" if error else "finished",
        "error": error,
        "step": step,
        "seconds": 34.5,
        "command": "python scripts/ablate.py configs/ablations/mask_rate.py",
        "machine": {"device": "cpu", "cores": 2},
        "versions": {"mlm_jax": "0.1.0", "jax": "0.10.2"},
    }
    (folder / "outcome.json").write_text(json.dumps(outcome | changes))
