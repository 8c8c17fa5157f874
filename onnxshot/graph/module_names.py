"""Which module of the network each node belongs to, as far as exporters say: in metadata, in names, or by weights."""

from __future__ import annotations

import re
from collections.abc import Iterable

from onnxshot.graph.ir import Constant, Node

_NAMESPACE = "namespace"  # torch.onnx with dynamo: ": Net/layer1: Sequential/layer1.0: Block/relu: aten.relu"
_WEIGHT = re.compile("weight|bias|kernel|gamma|beta|^[wb]_")  # the last part of its name: torch, TensorFlow, Paddle
_LONGEST = 200  # characters; names are untrusted


def module_names(nodes: Iterable[Node]) -> list[str]:
    """The path of the module of each node, such as `layer1.0.conv1` or `encoder/layers.3/mlp`; "" where unknown."""
    return [(_from_metadata(node) or _from_path(node.name or "") or _from_weights(node))[:_LONGEST] for node in nodes]


def _from_metadata(node: Node) -> str:
    """The innermost module that dynamo wrote down; its last entry is the operator."""
    for entry in node.extra.metadata_props:
        if entry.key == _NAMESPACE:
            names = [part.split(": ")[0] for part in entry.value.split("/")[:-1]]
            return names[-1] if names and not names[-1].startswith("_") else ""
    return ""


def _from_path(name: str) -> str:
    """The path in a node's name without the node itself: TorchScript repeats parents, `/layer1/layer1.0/conv1/Conv`."""
    parts = name.strip("/").split("/")[:-1]
    following = [*parts[1:], ""]
    return "/".join(part for part, after in zip(parts, following, strict=False) if not after.startswith(f"{part}."))


def _from_weights(node: Node) -> str:
    """The name of its first named weight, `layer1.0.conv1.weight`, without the last part."""
    for tensor in node.inputs:
        module, _, last = str(tensor.name).rpartition(".")
        if isinstance(tensor, Constant) and _WEIGHT.search(last) and ":" not in module:
            return module.strip("/")
    return ""
