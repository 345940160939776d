"""Shape and numerical conventions of the model, as a frozen dataclass that validates itself. Does not import jax."""

from dataclasses import dataclass
from typing import Literal

from mlm_jax.config.settings import (
    check_types,
    require,
    require_above_zero,
    require_below_one,
    require_positive,
)

HeadActivation = Literal["gelu", "gelu_tanh", "silu"]
Activation = Literal["gelu", "gelu_tanh", "geglu", "swiglu"]
Norm = Literal["layer_norm", "rms_norm"]
NormPlacement = Literal["post", "pre"]
Positions = Literal["learned", "rotary", "none"]
FeedForwardBiases = Literal["all", "down", "none"]
PoolerKind = Literal["tanh", "relu", "gelu", "head"]
Pooling = Literal["cls", "mean", "late"]

_ROTARY_BASE = 10_000.0

WEIGHT_COMPATIBLE_SETTINGS = frozenset(
    {
        *("dropout_rate", "attention_dropout_rate", "embedding_dropout", "initializer_stddev"),
        *("vocabulary_multiple", "model_type"),
    }
)
"""Settings that may change when training continues from saved weights: the weights keep their meaning."""

POSITION_SETTINGS = ("max_sequence_length", "rotary_base", "local_rotary_base")
"""Settings of positions that may change when training continues from saved weights, whose meaning changes with them."""

HEAD_SETTINGS = ("head_activation", "head_layer_norm_epsilon")
"""Settings of the masked-LM head, which have no effect on a model without it."""

POOLER_SETTINGS = ("pooler_kind", "pooling")
"""Settings of the pooler, which have no effect on a model without it."""

ADDED_SETTINGS = {
    "position_offset": 0,
    "model_type": "",
    "embedding_dim": None,
    "num_key_value_heads": None,
    "relative_position_buckets": 0,
    "mask_dropout_id": None,
    "shared_layers": False,
    "first_attention_norm": True,
    "head_transform": True,
    "attention_biases": True,
    "feed_forward_biases": "all",
    "pooler_kind": "tanh",
    "pooling": "cls",
}
"""Settings that checkpoints of earlier versions lack, and the values that they had then."""

# Far above any model, so that a damaged config is an error and not an attempt to build it.
_LARGEST = {
    "num_layers": 1_000,
    "vocabulary_size": 1 << 22,
    **dict.fromkeys(("hidden_dim", "intermediate_dim", "max_sequence_length"), 1 << 20),
    **dict.fromkeys(("num_segments", "vocabulary_multiple", "position_offset"), 1 << 20),
    "relative_position_buckets": 1 << 10,
}


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """An encoder with its MLM head; the defaults are BERT (Devlin et al. 2018).

    Every property in which published checkpoints differ is a field. `mlm_jax.config.presets` has the named BERT sizes.
    """

    model_type: str = ""
    """Model type in transformers' folders; empty: the first with its architecture.

    A model that was read from such a folder keeps its type, because several types share one architecture."""
    vocabulary_size: int = 30_522
    """Number of vocabulary entries."""
    num_layers: int = 12
    """Number of encoder layers."""
    hidden_dim: int = 768
    """Width of the hidden states."""
    embedding_dim: int | None = None
    """Width of the embeddings; None: `hidden_dim`.

    Narrower embeddings are mapped to `hidden_dim`, and the MLM head maps back (Lan et al. 2019, ALBERT)."""
    num_heads: int = 12
    """Number of attention heads; must divide `hidden_dim`."""
    num_key_value_heads: int | None = None
    """Number of heads of keys and values; None: `num_heads`.

    Groups of heads of queries share one (Ainslie et al. 2023)."""
    intermediate_dim: int = 3072
    """Width of the feed-forward block."""
    max_sequence_length: int = 512
    """Maximum number of tokens per row, for every position encoding."""
    num_segments: int = 2
    """Number of segments in the segment embedding; 0: no segment embedding."""
    positions: Positions = "learned"
    """Position encoding: learned, rotary or none.

    `"learned"` is an embedding table. `"rotary"` rotates queries and keys by their position (Su et al. 2021), with
    wavelengths from 2π to nearly 2π · `rotary_base` tokens. `"none"` gives the model no information on word order."""
    position_offset: int = 0
    """Number of rows of the learned position table before that of the first token.

    RoBERTa's has 2, which no text uses: positions there count from the padding id + 1."""
    relative_position_buckets: int = 0
    """Number of ranges of distances with a bias of attention; 0: no bias.

    Each head learns its own, and all layers share them (Raffel et al. 2019). Half of the ranges are for either
    direction; the last ones begin at 128 tokens."""
    rotary_base: float = _ROTARY_BASE
    """Base of the rotary wavelengths."""
    local_rotary_base: float | None = None
    """Rotary base of local layers; None: `rotary_base`."""
    local_attention_window: int | None = None
    """Attention window of local layers, in tokens; None: all layers are global.

    Half of the window lies on each side of the token, which also attends to itself (Warner et al. 2024, ModernBERT).
    Must be even."""
    global_attention_every: int = 1
    """Make every n-th layer global, starting with the first.

    Needs `local_attention_window`."""
    norm: Norm = "layer_norm"
    """Normalization: layer_norm or rms_norm.

    RMSNorm (Zhang & Sennrich 2019) has neither mean nor bias; it uses the same epsilons."""
    norm_placement: NormPlacement = "post"
    """Normalize after each block (post) or before it (pre).

    `"pre"` normalizes the inputs of attention and feed-forward (Xiong et al. 2020), and the last layer's output."""
    embedding_norm: bool = True
    """Normalize the sum of the embeddings."""
    first_attention_norm: bool = True
    """Normalize before the attention of the first layer, too.

    False is ModernBERT's convention, whose embeddings are normalized just before. Needs `norm_placement = "pre"`."""
    mask_dropout_id: int | None = None
    """Id of the mask token, if its embedding is dropped; None: it is not.

    Dropped embeddings are zero, and the others are scaled to make up for it: by (1 - 0.12) / (1 - share of masks in
    the text), as in ESM-2 (Lin et al. 2022)."""
    shared_layers: bool = False
    """Use one set of weights in all layers (Lan et al. 2019, ALBERT)."""
    biases: bool = True
    """Use biases in linear maps and norms.

    The bias per vocabulary entry in the MLM head is independent of it."""
    attention_biases: bool = True
    """Use biases in attention, if `biases` is True."""
    feed_forward_biases: FeedForwardBiases = "all"
    """Biases of the feed-forward, if `biases` is True: all, down or none."""
    activation: Activation = "gelu"
    """Feed-forward activation: gelu, gelu_tanh, geglu or swiglu.

    `"gelu"` is the exact (erf) GELU of Google and Hugging Face, `"gelu_tanh"` its approximation, which KerasHub uses in
    the encoder. `"geglu"` and `"swiglu"` are gated (Shazeer 2020): the product of two maps of width `intermediate_dim`,
    one of them passed through the exact GELU or SiLU."""
    layer_norm_epsilon: float = 1e-12
    """Epsilon of the norms in the encoder."""
    head_activation: HeadActivation = "gelu"
    """Activation in the MLM head: gelu, gelu_tanh or silu."""
    head_layer_norm_epsilon: float = 1e-12
    """Epsilon of the norm in the MLM head; KerasHub uses 1e-5."""
    dropout_rate: float = 0.1
    """Dropout rate of embeddings and blocks."""
    embedding_dropout: bool = True
    """Apply dropout to the embeddings too."""
    attention_dropout_rate: float = 0.1
    """Dropout rate of the attention weights."""
    pooler: bool = True
    """Add a dense layer that makes the vector of a text, for classifiers."""
    pooler_kind: PoolerKind = "tanh"
    """Activation after the pooler's dense layer: tanh, relu, gelu or head.

    `"relu"` is DistilBERT's, `"gelu"` ELECTRA's and EuroBERT's; both have a bias without `biases`, too. `"head"` is
    ModernBERT's: the activation and the norm of the MLM head."""
    pooling: Pooling = "cls"
    """Input of the pooler: cls (the first token), mean (of all tokens) or late.

    `"late"` applies it to every token and takes the mean of the results (EuroBERT)."""
    head_transform: bool = True
    """Give the MLM head a dense layer, norm and bias per vocabulary entry.

    False leaves only the output embedding, as in EuroBERT. Needs `tie_embeddings = False`."""
    tie_embeddings: bool = True
    """Share the token embedding with the output layer."""
    vocabulary_multiple: int = 1
    """Pad the embedding table to a multiple of this number of rows.

    Makes the table divisible by a tensor axis. No id refers to the padding rows; logits and `count_parameters` exclude
    them."""
    initializer_stddev: float = 0.02
    """Standard deviation of the initial weights."""

    def __post_init__(self) -> None:
        check_types(self)
        require_positive(
            self,
            *("vocabulary_size", "num_layers", "hidden_dim", "num_heads", "intermediate_dim"),
            *("max_sequence_length", "vocabulary_multiple", "global_attention_every"),
        )
        require(self, "num_segments", self.num_segments >= 0, "at least 0")
        require(self, "position_offset", self.position_offset >= 0, "at least 0")
        if self.positions != "learned":
            allowed = f"0 with positions {self.positions!r}, which have no table"
            require(self, "position_offset", self.position_offset == 0, allowed)
        # Without an epsilon, a vector of equal numbers is normalized to NaN; without a spread, weights never differ.
        require_above_zero(self, "layer_norm_epsilon", "head_layer_norm_epsilon", "initializer_stddev")
        for name, largest in _LARGEST.items():
            require(self, name, getattr(self, name) <= largest, f"at most {largest:,}")
        require_below_one(self, "dropout_rate", "attention_dropout_rate")
        divides = self.hidden_dim % self.num_heads == 0
        require(self, "num_heads", divides, f"a divisor of hidden_dim = {self.hidden_dim}")
        self._check_parts()
        self._check_rotary()
        self._check_windows()

    def _check_parts(self) -> None:
        width, groups, buckets = self.embedding_dim, self.num_key_value_heads, self.relative_position_buckets
        other = f"None or from 1 to {1 << 20:,}, and not hidden_dim, which None stands for"
        differs = width is None or (1 <= width <= 1 << 20 and width != self.hidden_dim)
        require(self, "embedding_dim", differs, other)
        divides = groups is None or (1 <= groups < self.num_heads and self.num_heads % groups == 0)
        smaller = f"None or a smaller divisor of num_heads = {self.num_heads}"
        require(self, "num_key_value_heads", divides, smaller)
        even = buckets == 0 or (buckets >= 4 and buckets % 4 == 0)
        require(self, "relative_position_buckets", even, "0 or a multiple of 4")
        in_vocabulary = self.mask_dropout_id is None or 0 <= self.mask_dropout_id < self.vocabulary_size
        below = f"None or an id below vocabulary_size = {self.vocabulary_size}"
        require(self, "mask_dropout_id", in_vocabulary, below)
        has_norm = self.first_attention_norm or (self.norm_placement == "pre" and self.num_layers > 1)
        at_least_two = "True without norm_placement 'pre' and at least 2 layers"
        require(self, "first_attention_norm", has_norm, at_least_two)
        differ = self.first_attention_norm or not self.shared_layers
        require(self, "first_attention_norm", differ, "True with shared_layers")
        require(self, "attention_biases", self.attention_biases or self.biases, "True without biases")
        all_or_biases = self.feed_forward_biases == "all" or self.biases
        require(self, "feed_forward_biases", all_or_biases, "'all' without biases")
        has_weights = self.head_transform or (width is None and not self.tie_embeddings)
        require(self, "head_transform", has_weights, "True with embedding_dim or tie_embeddings")
        like_head = self.pooler_kind != "head" or (width is None and self.head_transform)
        require(self, "pooler_kind", like_head, "another with embedding_dim or without head_transform")

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
            self,
            "num_heads",
            even,
            f"such that hidden_dim / num_heads = {self.head_dim} is even, for rotary positions",
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
            f"below {2 * (self.max_sequence_length - 1)}: half of it lies on each side, "
            f"and max_sequence_length = {self.max_sequence_length}",
        )
        require(
            self,
            "global_attention_every",
            every > 1,
            "at least 2 with local_attention_window: with 1, no layer is local",
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
    def embedding_width(self) -> int:
        """Width of the embeddings: `embedding_dim` or `hidden_dim`."""
        return self.hidden_dim if self.embedding_dim is None else self.embedding_dim

    @property
    def key_value_heads(self) -> int:
        """Heads of keys and values: `num_key_value_heads` or `num_heads`."""
        return self.num_heads if self.num_key_value_heads is None else self.num_key_value_heads

    @property
    def layers_per_period(self) -> int:
        """Number of layers after which the pattern of global and local layers repeats."""
        return 1 if self.local_attention_window is None else self.global_attention_every

    @property
    def gated(self) -> bool:
        """True if the feed-forward is gated: a product of two maps."""
        return self.activation in ("geglu", "swiglu")

    @property
    def padded_vocabulary_size(self) -> int:
        """Rows of the embedding table: `vocabulary_size` rounded up to a multiple of `vocabulary_multiple`."""
        return -(-self.vocabulary_size // self.vocabulary_multiple) * self.vocabulary_multiple
