"""Optimizer, coefficients and learning-rate schedule. Nothing here imports jax."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mlm_jax.config.settings import check_types, require, require_above_zero, require_below_one, require_rate

Schedule = Literal["linear", "cosine", "trapezoidal"]
CooldownShape = Literal["linear", "sqrt"]
Optimizer = Literal["adamw", "stable_adamw", "lamb", "adafactor", "muon"]

_ADAM = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-6}
# Defaults of each optimizer, used where a config has None. Coefficients not listed do not apply to it.
COEFFICIENTS: Mapping[Optimizer, Mapping[str, float]] = {
    "adamw": _ADAM,
    "stable_adamw": _ADAM,
    "lamb": _ADAM,
    # Epsilon is added to squared gradients. A beta1 of 0 means no momentum.
    "adafactor": {"beta1": 0.0, "epsilon": 1e-30},
    # The first three apply to the parameters that AdamW updates: all except the matrices of layers.
    "muon": _ADAM | {"momentum": 0.95},
}
_COEFFICIENT_NAMES = ("beta1", "beta2", "epsilon", "momentum")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Optimizer and learning-rate schedule: linear warm-up, then decay."""

    name: Optimizer = "adamw"
    """Optimizer, such as adamw, lamb or muon.

    One of adamw (Loshchilov & Hutter 2019), stable_adamw (Wortsman et al. 2023), lamb (You et al. 2020), adafactor
    (Shazeer & Stern 2018) and muon (Jordan et al. 2024). StableAdamW divides the learning rate of a weight by the root
    mean square of its gradient relative to its second moment where that exceeds 1; for `max_grad_norm=None`.
    Adafactor stores the row and column means of a matrix's second moments, and its learning rate is relative to the
    root mean square of the weights: 1e-2 is typical. Muon orthogonalizes the momentum of the attention and feed-forward
    matrices of layers, scaled so that AdamW's learning rate and decay carry over (Liu et al. 2025); AdamW updates
    embeddings, biases, norms, pooler and heads."""
    learning_rate: float = 1e-4
    """Peak learning rate."""
    schedule: Schedule = "linear"
    """Decay: linear, cosine or trapezoidal.

    After the warm-up the rate decays linearly or along a cosine to `final_learning_rate_fraction` of its peak. With
    `"trapezoidal"` it stays at the peak until `cooldown_steps` before the end, and then decays."""
    warmup_steps: int = 0
    """Number of linear warm-up steps."""
    cooldown_steps: int = 0
    """Number of final decay steps; only for the trapezoidal schedule."""
    cooldown_shape: CooldownShape = "linear"
    """Decay of the trapezoidal schedule: linear or sqrt.

    After a fraction x of the cooldown, the rate is its peak times 1 - x or, with `"sqrt"`, 1 - √x (Hägele et al. 2024),
    and as much of the way to `final_learning_rate_fraction`."""
    final_learning_rate_fraction: float = 0.0
    """Learning rate at the last step, as a fraction of the peak."""
    weight_decay: float = 0.01
    """Weight decay, times the learning rate.

    Biases and norms are not decayed."""
    independent_weight_decay: bool = False
    """Scale weight decay by the schedule, but not by the peak learning rate.

    The decay is multiplied by the learning rate's fraction of its peak (Wortsman et al. 2024). Typical values are those
    of other runs times their peak rate, such as 1e-6 for 0.01 at 1e-4."""
    beta1: float | None = None
    """Decay rate of the first moment; None: the optimizer's default.

    For Adafactor it is the momentum, which costs the memory of one moment. An optimizer without this coefficient
    requires None; see `COEFFICIENTS` for the defaults."""
    beta2: float | None = None
    """Decay rate of the second moment; None: the optimizer's default."""
    epsilon: float | None = None
    """Added to the denominator of updates; None: the optimizer's default."""
    momentum: float | None = None
    """Momentum of Muon; None: its default, 0.95."""
    layer_rate_decay: float = 1.0
    """Factor of the learning rate from each layer to the one below.

    The top layer has the learning rate times this factor, the layer below it times its square, and so on; the
    embeddings count as the layer below the first. The parameters after the layers have the full rate
    (`mlm_jax.optim.layer_transforms.scale_by_depth`)."""
    max_grad_norm: float | None = 1.0
    """Gradient norm above which gradients are scaled down; None: no clipping."""
    freeze: tuple[str, ...] = ()
    """Patterns of parameter paths to keep fixed, such as encoder/*.

    Patterns follow `fnmatch`. Frozen parameters keep their values and need no optimizer state."""

    def __post_init__(self) -> None:
        check_types(self)
        require_above_zero(self, "learning_rate")
        require(self, "warmup_steps", self.warmup_steps >= 0, "at least 0")
        if self.schedule == "trapezoidal":
            require(
                self, "cooldown_steps", self.cooldown_steps >= 1, "at least 1 with schedule 'trapezoidal'"
            )
        else:
            require(self, "cooldown_steps", self.cooldown_steps == 0, f"0 with schedule {self.schedule!r}")
            is_linear = self.cooldown_shape == "linear"
            require(self, "cooldown_shape", is_linear, f"'linear' with schedule {self.schedule!r}")
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
        """Coefficients of the optimizer by name: the given values, or else its defaults."""
        given = {name: getattr(self, name) for name in COEFFICIENTS[self.name]}
        return {
            name: COEFFICIENTS[self.name][name] if value is None else value for name, value in given.items()
        }
