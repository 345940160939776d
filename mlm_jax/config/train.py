"""Settings of a training run, as frozen dataclasses. Nothing here imports jax.

Each class validates its fields on construction and raises InputError (a ValueError) with the field, its value and the
allowed values. Use `dataclasses.replace` to derive one config from another. The docstring below a field documents it;
`--help` prints its first line.
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
RowOrder = Literal["global", "windowed"]
Attention = Literal["auto", "xla", "cudnn", "splash"]
Remat = Literal["none", "dots", "full"]

# Far above any run, so that a mistyped number is an error and not an attempt to allocate the rows.
_LARGEST_BATCH = 1 << 24


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Prepared data, and the way documents are divided into rows of `sequence_length` tokens."""

    path: str = ""
    """Folder or URL of the training data.

    A local path, or an fsspec URL such as `gs://…`, written by `mlm-jax prepare`."""
    eval_path: str | None = None
    """Folder or URL of the evaluation data.

    None: no evaluations."""
    sequence_length: int = 128
    """Tokens per row.

    Includes [CLS] and [SEP]; at most `model.max_sequence_length`."""
    packing: Packing = "packed"
    """Rows: "packed", or one per "document".

    `"packed"` concatenates the documents and cuts the stream into full rows. `"document"` starts every document in a
    new row and continues long documents in further rows."""
    eval_packing: Packing | None = None
    """Packing of the evaluation data; None: same as `packing`."""
    attend_within_documents: bool = False
    """Restrict attention in packed rows to a token's own document.

    A document ends with its [SEP]; the row's [CLS] belongs to the first document. Positions always count from the start
    of the row."""
    order: RowOrder = "global"
    """Order of the training rows: global or windowed.

    `"global"` permutes all rows of an epoch. `"windowed"` permutes blocks of about 1 MiB of consecutive rows, and then
    the rows within windows of 1,024 blocks, so that data at a URL are read in blocks instead of whole shards
    (docs/data.md)."""
    prefetch_batches: int = 4
    """Number of batches to read ahead."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self, "sequence_length", self.sequence_length >= 3, "at least 3 ([CLS], a token, [SEP])")
        require_positive(self, "prefetch_batches")
        allowed = self.packing == "packed" or not self.attend_within_documents
        require(
            self,
            "attend_within_documents",
            allowed,
            f"False with packing {self.packing!r}: a row holds one document",
        )


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Sizes of the mesh axes. At most one of `data`, `fsdp` and `tensor` may be -1: all remaining devices."""

    data: int = -1
    """Devices that replicate the model.

    They split the batch. With `dcn_data`, the number within a slice: the mesh axis `data` has `dcn_data` × `data`
    devices, slice by slice."""
    fsdp: int = 1
    """Devices that shard model and batch.

    Parameters, gradients and optimizer state are sharded over these devices, which also split the batch."""
    tensor: int = 1
    """Devices that shard each layer.

    Attention heads, feed-forward columns and vocabulary rows are split over these devices."""
    dcn_data: int = 1
    """Number of TPU slices or host groups that split the batch over the slow network.

    The other sizes count devices within one slice."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("data", "fsdp", "tensor"):
            require(self, name, getattr(self, name) >= 1 or getattr(self, name) == -1, "at least 1, or -1")
        require(self, "data", (self.data, self.fsdp, self.tensor).count(-1) <= 1, "the only axis of size -1")
        require_positive(self, "dcn_data")


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """Precision, memory and kernels. Apart from rounding and dropout bits, these settings do not affect the results."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Activations: auto, float32 or bfloat16.

    `"auto"` is bfloat16 on GPUs and TPUs that have it, and float32 elsewhere; a run that is resumed keeps what it began
    with. Parameters and optimizer state are always float32."""
    remat: Remat = "none"
    """Rematerialization: none, dots or full.

    The backward pass recomputes nothing (`"none"`), everything except matrix products (`"dots"`) or every layer
    (`"full"`) instead of storing it."""
    scan_unroll: int | None = None
    """Layers per iteration of the loop over layers; None: automatic.

    Without a loop, steps on a CPU are 5 to 13 % faster, but compilation takes longer with every layer, and a step needs
    more memory. The automatic choice is all layers if they are at most six, on a CPU without rematerialization, and 1
    otherwise; a run that is resumed keeps what it began with."""
    loss_chunks: int | None = None
    """Number of chunks in which logits are computed; None: automatic.

    Only one chunk of the logits exists at a time. The automatic choice keeps a device's chunk at 128 MiB or less, or at
    one position per row."""
    dropout_generator: Literal["threefry2x32", "rbg"] = "threefry2x32"
    """Random generator of dropout: threefry2x32 or rbg.

    `"rbg"` is cheap on a single TPU chip, but its bits depend on the mesh, and every device generates the bits of the
    whole global batch (docs/pods.md)."""
    attention: Attention = "auto"
    """Attention implementation: auto, xla, cudnn or splash.

    For rows of 512 tokens or more, `"auto"` picks a kernel that never stores the L × L attention weights, if one
    supports the model: cuDNN on NVIDIA GPUs (bfloat16), splash on TPU. Otherwise XLA computes attention; see
    `mlm_jax.model.attention`."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("scan_unroll", "loss_chunks"):
            if getattr(self, name) is not None:
                require_positive(self, name)


@dataclass(frozen=True, kw_only=True)
class DistributedConfig:
    """Addresses and timeout of the processes of a job.

    Slurm, Kubernetes and Cloud TPU provide the first three settings. Elsewhere, pass all three to every process.
    """

    coordinator: str | None = None
    """Address of process 0 as host:port."""
    num_processes: int | None = None
    """Number of processes in the job."""
    process_id: int | None = None
    """Index of this process, from 0."""
    timeout_seconds: int = 60
    """Seconds after which a silent process ends the job.

    Also the time within which all processes must join the job. A step may take ten times as long as the longest step
    before it."""

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
    """Model, data, training, evaluation and checkpoints of a run."""

    output_dir: str = "runs/bert"
    """Run folder to create or to resume.

    Contains config.json, metrics.jsonl, eval.jsonl, loss.png, tensorboard/, tokenizer/ and checkpoints/."""
    model: BertConfig = BertConfig(pooler=False)
    data: DataConfig = DataConfig()
    masking: MaskingRecipe = MaskingRecipe()
    """Masking of the training data."""
    eval_masking: MaskingRecipe = MaskingRecipe()
    """Masking of the evaluation data.

    The default is the same in all runs, so that their losses are comparable however their training data are masked."""
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    compute: ComputeConfig = ComputeConfig()
    distributed: DistributedConfig = DistributedConfig()
    seed: int = 0
    """Seed of all random numbers.

    Determines weights, data order, masks and dropout."""
    num_steps: int = 1000
    """Number of training steps."""
    batch_size: int = 32
    """Rows per step, over all devices.

    Global: includes all devices, processes and microbatches."""
    accumulation_steps: int = 1
    """Number of microbatches per step.

    Must divide `batch_size`; gradients are accumulated over the microbatches."""
    initial_batch_size: int | None = None
    """Rows in the first steps; None: `batch_size` throughout.

    Must divide `batch_size`. The size then grows linearly with the number of rows seen, in multiples of this number
    (see `BatchSizes`). Each size has its own program, compiled when first needed, with microbatches no larger than
    those of `batch_size`. Evaluation batches keep the size of a microbatch of `batch_size`."""
    batch_size_warmup_examples: int = 0
    """Rows over which the batch grows from `initial_batch_size` to `batch_size`."""
    log_every: int = 10
    """Steps between lines of metrics."""
    eval_every: int = 500
    """Steps between evaluations."""
    eval_batches: int | None = None
    """Number of batches per evaluation; None: all of the data."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    keep_checkpoints: int = 3
    """Newest checkpoints to keep, plus the best.

    The best checkpoint is the one with the lowest evaluation loss."""
    max_nonfinite_steps: int = 20
    """Consecutive non-finite steps after which the run stops.

    A step with a non-finite loss, gradient or update is skipped: it changes no parameter. A run whose last steps were
    all skipped fails, too."""
    init_from: str | None = None
    """Model whose weights the run starts from.

    A run folder, a model folder of this or another library, a built-in name, `hf://user/model` or
    `kaggle://handle`."""
    compilation_cache_dir: str | None = "~/.cache/mlm_jax/compilation"
    """Folder for compiled programs; None: no cache."""

    def __post_init__(self) -> None:
        check_types(self)
        require_positive(
            self,
            *("num_steps", "batch_size", "accumulation_steps", "log_every", "eval_every"),
            *("checkpoint_every", "keep_checkpoints", "max_nonfinite_steps"),
        )
        require(self, "batch_size", self.batch_size <= _LARGEST_BATCH, f"at most {_LARGEST_BATCH:,}")
        require(self, "seed", 0 <= self.seed < 2**32, "in [0, 2**32)")
        require(self, "num_steps", self.num_steps < 2**31, "below 2**31: steps are counted in int32")
        require(self, "init_from", self.init_from != "", "the name of a model, or None")
        if self.eval_batches is not None:
            require_positive(self, "eval_batches")
        if self.eval_masking.rate_schedule != "constant":
            raise InputError(
                f"eval_masking.rate_schedule = {self.eval_masking.rate_schedule!r}: must be 'constant': "
                "all evaluations of a run must use the same masks"
            )
        for name in ("masking", "eval_masking"):
            try:
                getattr(self, name).require_something_to_learn()
            except InputError as error:
                raise InputError(f"{name}: {error}") from error
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
        if self.optimizer.warmup_steps == self.num_steps == 1:
            raise InputError(
                "optimizer.warmup_steps = 1: must be 0 with num_steps = 1: a warm-up begins with a learning rate of 0"
            )

    def batch_sizes(self, first_step: int = 0, first_example: int = 0) -> BatchSizes:
        """Returns the batch size of every step of a run that resumes at `first_step` with example `first_example`."""
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
            f"smaller: the batch reaches its full size at step {full_from}, not before num_steps = {self.num_steps}",
        )
