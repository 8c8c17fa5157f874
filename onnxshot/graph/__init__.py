"""The model: its graph, weights, names, inputs and outputs. No other folder imports onnx-graphsurgeon."""

from onnxshot.graph.ir import Constant, Graph, Node, Tensor, Variable
from onnxshot.graph.model import Model

__all__ = ["Constant", "Graph", "Model", "Node", "Tensor", "Variable"]
