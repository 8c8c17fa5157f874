"""What a model is: graph, weights, names and the input/output contract. The only room that imports graphsurgeon."""

from onnxshot.graph.ir import Constant, Graph, Node, Tensor, Variable
from onnxshot.graph.model import Model

__all__ = ["Constant", "Graph", "Model", "Node", "Tensor", "Variable"]
