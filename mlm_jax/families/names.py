"""Rows of the tables that pair another library's tensors with our parameters; `formats/name_table.py` applies them.

A row pairs the name of a foreign tensor with the path of our parameter. A parameter stacked by layer (its first logical
axis is `layers`) corresponds to one foreign tensor per layer, with `{layer}` in the name. Rows with the same name are
parts of one tensor, one after the other along its outputs. The layout of a row describes the foreign tensor:

    same      same layout as our array
    flat      heads and head width share a dimension; inputs come first in a matrix
    out_in    flat and transposed, as in torch's Linear
"""

from typing import Literal, NamedTuple

Layout = Literal["same", "flat", "out_in"]


class Row(NamedTuple):
    """A row of a table."""

    name: str
    path: str
    layout: Layout = "same"
    first_layer: int = 0
    """First layer that has such a tensor. Our parameter has ones in the layers before, which have no effect."""


class Endings(NamedTuple):
    """Endings of a library's tensor names, and the layout of its linear maps."""

    kernel: str
    bias: str
    scale: str
    offset: str
    layout: Layout

    def linear(self, name: str, path: str) -> tuple[Row, Row]:
        """Returns the rows of a linear map."""
        bias_layout: Layout = "same" if self.layout == "same" else "flat"
        return (
            Row(name + self.kernel, f"{path}/kernel", self.layout),
            Row(name + self.bias, f"{path}/bias", bias_layout),
        )

    def norm(self, name: str, path: str, first_layer: int = 0) -> tuple[Row, Row]:
        """Returns the rows of a norm."""
        return (
            Row(name + self.scale, f"{path}/scale", "same", first_layer),
            Row(name + self.offset, f"{path}/bias", "same", first_layer),
        )


TORCH = Endings(kernel=".weight", bias=".bias", scale=".weight", offset=".bias", layout="out_in")
"""Endings of torch's modules, as transformers uses them."""


class LayerNames(NamedTuple):
    """Names of the modules of an encoder's layer, by default BERT's."""

    layer: str = "encoder.layer.{layer}"
    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    output: str = "attention.output.dense"
    attention_norm: str = "attention.output.LayerNorm"
    up: str = "intermediate.dense"
    down: str = "output.dense"
    feed_forward_norm: str = "output.LayerNorm"
    gate: str = ""
    gate_is_first: bool = True
    """True if the gate comes before the other map in a tensor that has both."""

    def rows(self, prefix: str, first_attention_norm: int = 0) -> tuple[Row, ...]:
        """Returns the table of the layers, for tensors that begin with `prefix`."""
        of_layer, layers = f"{prefix}{self.layer}.", "encoder/layers"
        up = TORCH.linear(of_layer + self.up, f"{layers}/feed_forward/up")
        gate = TORCH.linear(of_layer + self.gate, f"{layers}/feed_forward/gate") if self.gate else ()
        return (
            *TORCH.linear(of_layer + self.query, f"{layers}/attention/query"),
            *TORCH.linear(of_layer + self.key, f"{layers}/attention/key"),
            *TORCH.linear(of_layer + self.value, f"{layers}/attention/value"),
            *TORCH.linear(of_layer + self.output, f"{layers}/attention/output"),
            *TORCH.norm(of_layer + self.attention_norm, f"{layers}/attention_norm", first_attention_norm),
            *((*gate, *up) if self.gate_is_first else (*up, *gate)),
            *TORCH.linear(of_layer + self.down, f"{layers}/feed_forward/down"),
            *TORCH.norm(of_layer + self.feed_forward_norm, f"{layers}/feed_forward_norm"),
        )


def embedding_rows(prefix: str, norm: str = "embeddings.LayerNorm") -> tuple[Row, ...]:
    """Returns the table of BERT's embeddings, for tensors that begin with `prefix`."""
    return (
        Row(f"{prefix}embeddings.word_embeddings.weight", "encoder/embeddings/token"),
        Row(f"{prefix}embeddings.position_embeddings.weight", "encoder/embeddings/position"),
        Row(f"{prefix}embeddings.token_type_embeddings.weight", "encoder/embeddings/segment"),
        *TORCH.norm(prefix + norm, "encoder/embeddings/norm"),
    )


def head_rows(dense: str, norm: str, output: str, bias: str) -> tuple[Row, ...]:
    """Returns the table of a masked-LM head."""
    return (
        *TORCH.linear(dense, "head/dense"),
        *TORCH.norm(norm, "head/norm"),
        Row(bias, "head/bias"),
        Row(output, "head/output"),
    )
