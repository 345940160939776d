"""Everything a run can set, as frozen dataclasses. Nothing here imports jax.

Each class checks its own fields when it is made and raises InputError (a ValueError) that names the field, the
value and what is allowed. `dataclasses.replace` derives one config from another.
"""

from dataclasses import dataclass
from typing import Literal

from mlm_jax.errors import InputError
from mlm_jax.masking_config import MaskingRecipe
from mlm_jax.settings import check_types, require, require_below_one, require_positive, require_rate

Activation = Literal["gelu", "gelu_tanh"]
Packing = Literal["packed", "document"]
Attention = Literal["auto", "xla", "cudnn", "splash"]
Remat = Literal["none", "dots", "full"]
Schedule = Literal["linear", "cosine", "trapezoidal"]


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """The shape and the numerical conventions of a BERT encoder with its MLM head (Devlin et al. 2018).

    Whatever published checkpoints differ in is a field: `"gelu"` is the exact (erf) GELU of Google and Hugging
    Face, `"gelu_tanh"` its approximation; KerasHub uses tanh in the encoder and exact with epsilon 1e-5 in the
    head. `vocabulary_multiple` pads the embedding table with rows that no id reaches, so that a tensor axis
    divides it; logits and `count_parameters` leave them out.
    """

    vocabulary_size: int = 30_522
    num_layers: int = 12
    hidden_dim: int = 768
    num_heads: int = 12
    intermediate_dim: int = 3072
    max_sequence_length: int = 512
    num_segments: int = 2
    activation: Activation = "gelu"
    layer_norm_epsilon: float = 1e-12
    head_activation: Activation = "gelu"
    head_layer_norm_epsilon: float = 1e-12
    dropout_rate: float = 0.1
    attention_dropout_rate: float = 0.1
    pooler: bool = True
    tie_embeddings: bool = True
    vocabulary_multiple: int = 1
    initializer_stddev: float = 0.02

    def __post_init__(self) -> None:
        check_types(self)
        require_positive(
            self,
            *("vocabulary_size", "num_layers", "hidden_dim", "num_heads", "intermediate_dim"),
            *("max_sequence_length", "num_segments", "vocabulary_multiple"),
        )
        require_below_one(self, "dropout_rate", "attention_dropout_rate")
        divides = self.hidden_dim % self.num_heads == 0
        require(self, "num_heads", divides, f"a divisor of hidden_dim = {self.hidden_dim}")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_dim // self.num_heads

    @property
    def padded_vocabulary_size(self) -> int:
        """Rows of the embedding table: the vocabulary rounded up to `vocabulary_multiple`."""
        return -(-self.vocabulary_size // self.vocabulary_multiple) * self.vocabulary_multiple


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the prepared shards lie and how their documents become rows of `sequence_length` tokens.

    `"packed"` cuts the documents' stream into full rows; `"document"` starts each document in a row of its own
    and splits long ones over several rows. `eval_path` names a second prepared folder.

    With `attend_within_documents` a token of a packed row attends to those of its own document alone: up to and with
    the [SEP] that ends it, the row's [CLS] being of the first. Positions count from the start of the row all the same.
    """

    path: str = ""
    eval_path: str | None = None
    sequence_length: int = 128
    packing: Packing = "packed"
    attend_within_documents: bool = False
    prefetch_batches: int = 4

    def __post_init__(self) -> None:
        check_types(self)
        require(self, "sequence_length", self.sequence_length >= 3, "at least 3 ([CLS], a token, [SEP])")
        require_positive(self, "prefetch_batches")
        divided = self.packing == "packed" or not self.attend_within_documents
        require(
            self,
            "attend_within_documents",
            divided,
            f"False with packing {self.packing!r}: a row is of one document",
        )


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter 2019) or LAMB (You et al. 2020) with a warmed-up learning-rate schedule.

    Weight decay spares biases and LayerNorm. After `warmup_steps` of linear warm-up the rate goes to
    `final_learning_rate_fraction` of its peak: linearly, along a cosine, or, with `"trapezoidal"`, it stays at
    the peak until `cooldown_steps` before the end, a setting of that schedule alone. `freeze` lists patterns
    over parameter paths (`fnmatch`, as in `encoder/*`); what they match keeps its values and costs no optimiser
    memory.
    """

    name: Literal["adamw", "lamb"] = "adamw"
    learning_rate: float = 1e-4
    schedule: Schedule = "linear"
    warmup_steps: int = 0
    cooldown_steps: int = 0
    final_learning_rate_fraction: float = 0.0
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-6
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
        require(self, "epsilon", self.epsilon > 0, "above 0")
        require_rate(self, "final_learning_rate_fraction")
        require_below_one(self, "beta1", "beta2")
        if self.max_grad_norm is not None:
            require(self, "max_grad_norm", self.max_grad_norm > 0, "above 0, or None for no clipping")


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Sizes of the mesh axes: `data` replicates the model, `fsdp` shards it over the batch, `tensor` within layers.

    One of them may be -1: whatever devices remain. `dcn_data` is how many slices (TPU) or groups of hosts share the
    batch over the slow network between them; the other sizes are those within one, and the axis `data` of the mesh
    has dcn_data × data devices, slice by slice.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    dcn_data: int = 1

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("data", "fsdp", "tensor"):
            require(self, name, getattr(self, name) >= 1 or getattr(self, name) == -1, "at least 1, or -1")
        require(self, "data", (self.data, self.fsdp, self.tensor).count(-1) <= 1, "the only axis of size -1")
        require_positive(self, "dcn_data")


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How the same mathematics is computed; nothing here changes what is learned beyond rounding.

    `remat`: what the backward pass recomputes instead of keeping: `"none"`, `"dots"` (all but matrix products) or
    `"full"` (each layer). `scan_unroll`: layers a loop iteration. `loss_chunks`: the masked positions are put
    through the output embedding in that many pieces, so that only a piece of the logits exists at a time; by default
    in as many as keep those of a device at 128 MiB or less, or at one position a row.
    `dropout_generator`: `"rbg"` is cheap on one TPU chip, but its bits depend on the mesh, and each device makes those
    of the whole global batch (docs/pods.md). `attention`: `"auto"` is a kernel that never holds the L × L weights,
    cuDNN's on NVIDIA GPUs (in bfloat16) and splash on TPU, for rows of 512 tokens or more where nothing that is asked
    for is beyond it, and XLA's otherwise; see `mlm_jax.model.attention`.
    """

    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Remat = "none"
    scan_unroll: int = 1
    loss_chunks: int | None = None
    dropout_generator: Literal["threefry2x32", "rbg"] = "threefry2x32"
    attention: Attention = "auto"

    def __post_init__(self) -> None:
        check_types(self)
        require_positive(self, "scan_unroll")
        if self.loss_chunks is not None:
            require_positive(self, "loss_chunks")


@dataclass(frozen=True, kw_only=True)
class DistributedConfig:
    """How the processes of a job find each other, and how long one waits for another.

    Slurm, Kubernetes and Cloud TPU tell it by themselves. Elsewhere all three of `coordinator` (host:port of process
    0), `num_processes` and `process_id` are given to every process. One that gives no sign of life for
    `timeout_seconds`, or takes so much longer over a step than any took before, ends the job.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    timeout_seconds: int = 60

    def __post_init__(self) -> None:
        check_types(self)
        require(self, "timeout_seconds", self.timeout_seconds >= 6, "at least 6")
        given = [value is not None for value in (self.coordinator, self.num_processes, self.process_id)]
        if not any(given):
            return
        if not all(given):
            raise InputError(
                "distributed.coordinator, distributed.num_processes and distributed.process_id: "
                "must be given together, or none of them"
            )
        require(self, "coordinator", _is_address(self.coordinator), "host:port of process 0")
        require_positive(self, "num_processes")
        belongs = 0 <= self.process_id < self.num_processes  # type: ignore[operator]
        require(self, "process_id", belongs, f"in [0, num_processes = {self.num_processes})")


def _is_address(text: str | None) -> bool:
    host, _, port = (text or "").rpartition(":")
    return bool(host) and port.isdecimal() and 0 < int(port) < 2**16


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run. `batch_size` is global: rows a step over all devices and all accumulated microbatches.

    `masking` is what the run trains with, `eval_masking` what each of its evaluations uses: by default the same in all
    runs, so that their losses can be compared whatever they train with.

    `accumulation_steps` splits a step's rows into that many microbatches. `eval_batches=None` evaluates the whole
    evaluation set. `init_from` names the model that the run starts from: a run folder, a folder that was exported
    or that another library wrote, or a name of the hubs. Steps with a non-finite loss or gradient are skipped;
    `max_nonfinite_steps` of them in a row stop the run.
    """

    output_dir: str = "runs/bert"
    model: BertConfig = BertConfig(pooler=False)
    data: DataConfig = DataConfig()
    masking: MaskingRecipe = MaskingRecipe()
    eval_masking: MaskingRecipe = MaskingRecipe()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    compute: ComputeConfig = ComputeConfig()
    distributed: DistributedConfig = DistributedConfig()
    seed: int = 0
    num_steps: int = 1000
    batch_size: int = 32
    accumulation_steps: int = 1
    log_every: int = 10
    eval_every: int = 500
    eval_batches: int | None = None
    checkpoint_every: int = 500
    keep_checkpoints: int = 3
    max_nonfinite_steps: int = 20
    init_from: str | None = None
    compilation_cache_dir: str | None = "~/.cache/mlm_jax/compilation"

    def __post_init__(self) -> None:
        check_types(self)
        require_positive(
            self,
            *("num_steps", "batch_size", "accumulation_steps", "log_every", "eval_every"),
            *("checkpoint_every", "keep_checkpoints", "max_nonfinite_steps"),
        )
        require(self, "seed", 0 <= self.seed < 2**32, "in [0, 2**32)")
        if self.eval_batches is not None:
            require_positive(self, "eval_batches")
        if self.eval_masking.rate_schedule != "constant":
            raise InputError(
                f"eval_masking.rate_schedule = {self.eval_masking.rate_schedule!r}: must be 'constant': "
                "evaluations are to be the same whenever they are made"
            )
        divides = self.batch_size % self.accumulation_steps == 0
        require(self, "accumulation_steps", divides, f"a divisor of batch_size = {self.batch_size}")
        length, positions = self.data.sequence_length, self.model.max_sequence_length
        if length > positions:
            raise InputError(
                f"data.sequence_length = {length}: must be at most model.max_sequence_length = {positions}"
            )
        cycle = self.optimizer.warmup_steps + self.optimizer.cooldown_steps
        if cycle > self.num_steps:
            raise InputError(
                f"optimizer.warmup_steps + optimizer.cooldown_steps = {cycle}: "
                f"must be at most num_steps = {self.num_steps}"
            )
