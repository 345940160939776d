"""Rows of the tables that pair another library's tensors with our parameters; `formats/name_table.py` applies them.

A row pairs the name of a foreign tensor with the path of our parameter. A parameter stacked by layer (its first logical
axis is `layers`) corresponds to one foreign tensor per layer, with `{layer}` in the name. The layout of a row describes
the foreign tensor:

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

    def norm(self, name: str, path: str) -> tuple[Row, Row]:
        """Returns the rows of a LayerNorm."""
        return Row(name + self.scale, f"{path}/scale"), Row(name + self.offset, f"{path}/bias")
