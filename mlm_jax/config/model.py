"""The shape and the numerical conventions of the model, as a frozen dataclass that checks itself. No jax."""

from dataclasses import dataclass
from typing import Literal

from mlm_jax.config.settings import check_types, require, require_below_one, require_positive

HeadActivation = Literal["gelu", "gelu_tanh"]
Activation = Literal["gelu", "gelu_tanh", "geglu", "swiglu"]
Norm = Literal["layer_norm", "rms_norm"]
NormPlacement = Literal["post", "pre"]
Positions = Literal["learned", "rotary", "none"]

_ROTARY_BASE = 10_000.0

WEIGHT_COMPATIBLE_SETTINGS = frozenset(
    {
        *("dropout_rate", "attention_dropout_rate", "embedding_dropout", "initializer_stddev"),
        "vocabulary_multiple",
    }
)
"""The settings that may change between one training and the next: what a weight means does not depend on them."""


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """An encoder with its MLM head; the defaults are BERT (Devlin et al. 2018).

    Whatever published checkpoints differ in is a field: `"gelu"` is the exact (erf) GELU of Google and Hugging
    Face, `"gelu_tanh"` its approximation; KerasHub uses tanh in the encoder and exact with epsilon 1e-5 in the
    head. `vocabulary_multiple` pads the embedding table with rows that no id reaches, so that a tensor axis
    divides it; logits and `count_parameters` leave them out.

    Architectures differ in the other fields:

    - `activation`: `"geglu"` and `"swiglu"` are gated (Shazeer 2020): the product of two maps of `intermediate_dim`,
      one of them through the exact GELU or SiLU.
    - `norm_placement`: `"pre"` normalises what goes into attention and feed-forward (Xiong et al. 2020), and the
      sum of it all once, after the last layer. `norm`: RMSNorm (Zhang & Sennrich 2019) has neither mean nor bias;
      the epsilons are its own too. `embedding_norm=False` leaves the sum of the embeddings as it is.
    - `biases=False`: no linear map of encoder, pooler and head has one, and no norm; the head's bias per vocabulary
      entry stays. `embedding_dropout=False`: `dropout_rate` begins with the first layer.
    - `positions`: `"learned"` is a table; `"rotary"` turns queries and keys by their position (Su et al. 2021), with
      wavelengths from 2π to nearly 2π · `rotary_base` tokens; `"none"` tells the model nothing of their order.
      `max_sequence_length` bounds the rows of all three. `num_segments=0`: no segment table.
    - `local_attention_window`: a token attends to half of that many tokens to each side and to itself, in all layers
      but every `global_attention_every`-th, of which the first is one (Warner et al. 2024, ModernBERT).
      `local_rotary_base` is the rotary base of those layers, None that of the others.
    """

    vocabulary_size: int = 30_522
    num_layers: int = 12
    hidden_dim: int = 768
    num_heads: int = 12
    intermediate_dim: int = 3072
    max_sequence_length: int = 512
    num_segments: int = 2
    positions: Positions = "learned"
    rotary_base: float = _ROTARY_BASE
    local_rotary_base: float | None = None
    local_attention_window: int | None = None
    global_attention_every: int = 1
    norm: Norm = "layer_norm"
    norm_placement: NormPlacement = "post"
    embedding_norm: bool = True
    biases: bool = True
    activation: Activation = "gelu"
    layer_norm_epsilon: float = 1e-12
    head_activation: HeadActivation = "gelu"
    head_layer_norm_epsilon: float = 1e-12
    dropout_rate: float = 0.1
    embedding_dropout: bool = True
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
            *("max_sequence_length", "vocabulary_multiple", "global_attention_every"),
        )
        require(self, "num_segments", self.num_segments >= 0, "at least 0")
        require_below_one(self, "dropout_rate", "attention_dropout_rate")
        divides = self.hidden_dim % self.num_heads == 0
        require(self, "num_heads", divides, f"a divisor of hidden_dim = {self.hidden_dim}")
        self._check_rotary()
        self._check_windows()

    def _check_rotary(self) -> None:
        if self.positions != "rotary":
            unused = f"with positions {self.positions!r}"
            require(
                self,
                "rotary_base",
                self.rotary_base == _ROTARY_BASE,
                f"the default, {_ROTARY_BASE}, {unused}",
            )
            require(self, "local_rotary_base", self.local_rotary_base is None, f"None {unused}")
            return
        even = self.head_dim % 2 == 0
        require(
            self, "num_heads", even, f"such that hidden_dim / num_heads = {self.head_dim} is even, for rotary"
        )
        require(self, "rotary_base", self.rotary_base > 1, "above 1")
        if self.local_rotary_base is not None:
            require(self, "local_rotary_base", self.local_rotary_base > 1, "above 1")

    def _check_windows(self) -> None:
        every, window = self.global_attention_every, self.local_attention_window
        if window is None:
            require(self, "global_attention_every", every == 1, "1 without local_attention_window")
            require(
                self,
                "local_rotary_base",
                self.local_rotary_base is None,
                "None without local_attention_window",
            )
            return
        require(self, "local_attention_window", window > 0 and window % 2 == 0, "even and at least 2")
        require(
            self,
            "local_attention_window",
            window // 2 < self.max_sequence_length - 1,
            f"below {2 * (self.max_sequence_length - 1)}: half of it is to each side, "
            f"and max_sequence_length = {self.max_sequence_length}",
        )
        require(
            self,
            "global_attention_every",
            every > 1,
            "at least 2 with local_attention_window: of 1, no layer is local",
        )
        require(
            self,
            "num_layers",
            self.num_layers > 1,
            "at least 2 with local_attention_window: the first layer is global",
        )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_dim // self.num_heads

    @property
    def gated(self) -> bool:
        """Whether the feed-forward is a product of two maps."""
        return self.activation in ("geglu", "swiglu")

    @property
    def padded_vocabulary_size(self) -> int:
        """Rows of the embedding table: the vocabulary rounded up to `vocabulary_multiple`."""
        return -(-self.vocabulary_size // self.vocabulary_multiple) * self.vocabulary_multiple
