"""The model: its graph, weights, names, inputs and outputs. No other folder imports onnx-graphsurgeon.

Start with `model`, which defines `Model`, and `load`. `ops` holds facts about operators, `shape_inference` infers
shapes, and `edit` changes nodes. Nothing here decides what is quantized.
"""

from onnxshot.graph.ir import Constant, Graph, Node, Tensor, Variable
from onnxshot.graph.model import Model

__all__ = ["Constant", "Graph", "Model", "Node", "Tensor", "Variable"]
