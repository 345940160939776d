"""Everything a run can set, as frozen dataclasses. Nothing here imports jax.

Each class checks its own fields when it is made and raises InputError (a ValueError) that names the field, the
value and what is allowed. `dataclasses.replace` derives one config from another.
"""

from dataclasses import dataclass
from typing import Literal

from mlm_jax.config.batch_sizes import BatchSizes
from mlm_jax.config.masking import MaskingRecipe
from mlm_jax.config.model import BertConfig
from mlm_jax.config.optimizer import OptimizerConfig
from mlm_jax.config.settings import check_types, require, require_positive
from mlm_jax.errors import InputError

Packing = Literal["packed", "document"]
Attention = Literal["auto", "xla", "cudnn", "splash"]
Remat = Literal["none", "dots", "full"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the prepared shards lie and how their documents become rows of `sequence_length` tokens.

    `"packed"` cuts the documents' stream into full rows; `"document"` starts each document in a row of its own
    and splits long ones over several rows. `eval_path` names a second prepared folder, whose documents become rows as
    `eval_packing` says: by default like those of training.

    With `attend_within_documents` a token of a packed row attends to those of its own document alone: up to and with
    the [SEP] that ends it, the row's [CLS] being of the first. Positions count from the start of the row all the same.
    """

    path: str = ""
    eval_path: str | None = None
    sequence_length: int = 128
    packing: Packing = "packed"
    eval_packing: Packing | None = None
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

    `accumulation_steps` splits a step's rows into that many microbatches. With `initial_batch_size`, a divisor of
    `batch_size`, steps begin with so many rows and grow to `batch_size` over `batch_size_warmup_examples` rows,
    linearly in the rows taken and by multiples of `initial_batch_size` (see `BatchSizes`). Each size is a program of
    its own, compiled when a step first has it, in microbatches that are no larger than those of `batch_size`.
    Evaluation batches stay as large as these.

    `eval_batches=None` evaluates the whole
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
    initial_batch_size: int | None = None
    batch_size_warmup_examples: int = 0
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
        self._check_batch_size_warmup()
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

    def batch_sizes(self, first_step: int = 0, first_example: int = 0) -> BatchSizes:
        """The size of every step's batch, of a run that goes on at `first_step` with example `first_example`."""
        return BatchSizes(
            self.batch_size,
            self.initial_batch_size,
            self.batch_size_warmup_examples,
            first_step,
            first_example,
        )

    def _check_batch_size_warmup(self) -> None:
        examples, initial = self.batch_size_warmup_examples, self.initial_batch_size
        if initial is None:
            require(self, "batch_size_warmup_examples", examples == 0, "0 without initial_batch_size")
            return
        require_positive(self, "initial_batch_size")
        grows = initial < self.batch_size and self.batch_size % initial == 0
        require(
            self, "initial_batch_size", grows, f"a divisor of batch_size = {self.batch_size}, and below it"
        )
        require(self, "batch_size_warmup_examples", examples >= 1, "at least 1 with initial_batch_size")
        full_from = self.batch_sizes().stages[-1].first_step
        require(
            self,
            "batch_size_warmup_examples",
            full_from < self.num_steps,
            f"fewer: batches would be whole after {full_from} steps, not before num_steps = {self.num_steps}",
        )
