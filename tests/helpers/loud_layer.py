"""A network of six products, of which one matters more than the others."""

import numpy as np
import onnx
from handmade.core import model

LOUD = 3


def network(layers: int = 6) -> onnx.ModelProto:
    """The sum of products by six matrices, of which one is 8 times as large."""
    rng = np.random.default_rng(1)
    held = {f"w{i}": rng.normal(0, 1 + 7 * (i == LOUD), (256, 96)).astype(np.float32) for i in range(layers)}
    body = "".join(f"y{i} = MatMul(x, w{i})\n" for i in range(layers))
    body += f"out = Sum({', '.join(f'y{i}' for i in range(layers))})\n"
    proto = model(f"g (float[N,256] x) => (float[N,96] out) {{ {body} }}", held)
    for node in proto.graph.node:
        node.name = f"layer/{node.output[0]}"
    return proto
