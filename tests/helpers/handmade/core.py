"""What every hand-made graph is built with."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, parser

from onnxshot.calibration.checks import NamedFeed

Feed = dict[str, NDArray[Any]]
HANDMADE: "dict[str, Callable[[], Case]]" = {}


@dataclass(frozen=True, slots=True)
class Case:
    """A graph, inputs to run it on, and whether ONNX Runtime runs it and onnx.checker takes it."""

    model: onnx.ModelProto
    feeds: list[Feed]
    runs: bool = True
    valid: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "feeds", samples(self.feeds))


def case(build: Callable[[], Case]) -> Callable[[], Case]:
    """Register a builder under its function's name."""
    assert build.__name__ not in HANDMADE, build.__name__
    HANDMADE[build.__name__] = build
    return build


def weight(*shape: int, seed: int = 0, channel_axis: int = 0) -> NDArray[np.float32]:
    """He-scaled normal weights float32 of this shape, whose channels differ in size by up to 8 times."""
    rng = np.random.default_rng([seed, *shape])
    values = rng.normal(0, (2 / max(1, int(np.prod(shape[1:])))) ** 0.5, shape)
    spread = np.ones(len(shape), np.int64)
    spread[channel_axis] = shape[channel_axis]
    return (values * np.exp(rng.uniform(-1, 1, spread))).astype(np.float32)


def vector(size: int, seed: int = 0, low: float = -0.5, high: float = 0.5) -> NDArray[np.float32]:
    """Uniform values float32 [size]: biases, scales."""
    return np.random.default_rng([seed, size]).uniform(low, high, size).astype(np.float32)


def feeds(count: int = 8, dtype: type = np.float32, **shapes: Sequence[int]) -> list[Feed]:
    """Normal inputs of these shapes, the same on every call; each feed is one sample, whatever its batch."""
    rng = np.random.default_rng(7)
    drawn = [{name: rng.normal(0, 1, shape).astype(dtype) for name, shape in shapes.items()} for _ in range(count)]
    return samples(drawn)


def samples(given: Sequence[Feed]) -> list[Feed]:
    """Feeds that are one sample each: calibration does not part their batches."""
    return [NamedFeed(feed, f"#{i}") for i, feed in enumerate(given)]


def model(
    text: str, constants: Mapping[str, Any] | None = None, *, opset: int = 17, ir: int = 8, imports: str = ""
) -> onnx.ModelProto:
    """Parse ONNX text; names in constants become initializers. imports adds to the opsets: ', "local": 1'."""
    proto = parser.parse_model(f'<ir_version: {ir}, opset_import: ["": {opset}{imports}]>\n{text}')
    for name, value in (constants or {}).items():
        proto.graph.initializer.append(numpy_helper.from_array(value, name))
    return proto
