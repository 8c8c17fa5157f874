"""Hand-made graphs that break tools: HANDMADE maps a name to a function that builds the case."""

from handmade import blocks, control, heads, odd, opsets, quantized, weights  # noqa: F401  importing fills HANDMADE
from handmade.core import HANDMADE, Case
from handmade.weights import write_external

__all__ = ["HANDMADE", "Case", "write_external"]
