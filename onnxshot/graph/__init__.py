"""What a model is: graph, weights, names and the input/output contract. The only room that imports graphsurgeon."""

from onnxshot.graph.model import Constant, Graph, Model, Node, Tensor, Variable

__all__ = ["Constant", "Graph", "Model", "Node", "Tensor", "Variable"]
