"""The optimiser of a run, its coefficients and its learning-rate schedule. Nothing here imports jax."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mlm_jax.config.settings import check_types, require, require_below_one, require_rate

Schedule = Literal["linear", "cosine", "trapezoidal"]
Optimizer = Literal["adamw", "lamb", "adafactor", "muon"]

_ADAM = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-6}
# What an optimiser takes where a config has None; what is not named here it does not have.
COEFFICIENTS: Mapping[Optimizer, Mapping[str, float]] = {
    "adamw": _ADAM,
    "lamb": _ADAM,
    # The epsilon is added to squared gradients; without beta1 there is no momentum.
    "adafactor": {"beta1": 0.0, "epsilon": 1e-30},
    # The first three are those of what is not a matrix.
    "muon": _ADAM | {"momentum": 0.95},
}
_COEFFICIENT_NAMES = ("beta1", "beta2", "epsilon", "momentum")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, LAMB, Adafactor or Muon, with a warmed-up learning-rate schedule.

    AdamW is of Loshchilov & Hutter 2019, LAMB of You et al. 2020, Adafactor of Shazeer & Stern 2018, Muon of Jordan et
    al. 2024.

    Adafactor keeps of a matrix's second moments the means of rows and columns, and takes a learning rate relative to
    the weights' root mean square: 1e-2 is customary. Muon orthogonalises the momentum of the attention and
    feed-forward matrices of layers, scaled so that AdamW's learning rate and decay carry over (Liu et al. 2025);
    embeddings, biases, LayerNorm, pooler and heads are AdamW's.

    `beta1`, `beta2`, `epsilon` and `momentum` are by default the optimiser's own, see `COEFFICIENTS`; one that the
    optimiser does not have must be None. `momentum` is Muon's; Adafactor's, which costs it the memory of a moment, is
    `beta1`.

    Weight decay spares biases and LayerNorm, and is multiplied by the learning rate. `layer_rate_decay` multiplies
    the learning rate once for the top layer, twice for the one below, …, and once more for the embeddings than for
    the first layer; what comes after the layers has the full one (`mlm_jax.optim.layer_transforms.scale_by_depth`).

    After `warmup_steps` of linear warm-up the rate goes to `final_learning_rate_fraction` of its peak: linearly, along
    a cosine, or, with `"trapezoidal"`, it stays at the peak until `cooldown_steps` before the end, a setting of that
    schedule alone. `freeze` lists patterns over parameter paths (`fnmatch`, as in `encoder/*`); what they match keeps
    its values and costs no optimiser memory.
    """

    name: Optimizer = "adamw"
    learning_rate: float = 1e-4
    schedule: Schedule = "linear"
    warmup_steps: int = 0
    cooldown_steps: int = 0
    final_learning_rate_fraction: float = 0.0
    weight_decay: float = 0.01
    beta1: float | None = None
    beta2: float | None = None
    epsilon: float | None = None
    momentum: float | None = None
    layer_rate_decay: float = 1.0
    max_grad_norm: float | None = 1.0
    freeze: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_types(self)
        require(self, "learning_rate", self.learning_rate > 0, "above 0")
        require(self, "warmup_steps", self.warmup_steps >= 0, "at least 0")
        if self.schedule == "trapezoidal":
            require(
                self, "cooldown_steps", self.cooldown_steps >= 1, "at least 1 with schedule 'trapezoidal'"
            )
        else:
            require(self, "cooldown_steps", self.cooldown_steps == 0, f"0 with schedule {self.schedule!r}")
        require(self, "weight_decay", self.weight_decay >= 0, "at least 0")
        for name in _COEFFICIENT_NAMES:
            known = name in COEFFICIENTS[self.name] or getattr(self, name) is None
            require(self, name, known, f"None with name {self.name!r}, which has none")
        given = [name for name in _COEFFICIENT_NAMES if getattr(self, name) is not None]
        require_below_one(self, *(name for name in given if name != "epsilon"))
        require(self, "epsilon", self.coefficients["epsilon"] > 0, "above 0")
        require_rate(self, "final_learning_rate_fraction")
        require(self, "layer_rate_decay", 0 < self.layer_rate_decay <= 1, "in (0, 1]")
        if self.max_grad_norm is not None:
            require(self, "max_grad_norm", self.max_grad_norm > 0, "above 0, or None for no clipping")

    @property
    def coefficients(self) -> dict[str, float]:
        """What the optimiser takes of beta1, beta2, epsilon and momentum, by name."""
        given = {name: getattr(self, name) for name in COEFFICIENTS[self.name]}
        return {
            name: COEFFICIENTS[self.name][name] if value is None else value for name, value in given.items()
        }
