"""Mutations of weights: their values, types, shapes and where they lie."""

import numpy as np
from numpy.typing import NDArray
from onnx import SparseTensorProto, TensorProto, helper, numpy_helper

from fuzzing.core import Mutant, Pointless, mutation

FLOAT = TensorProto.FLOAT


def _put(tensor: TensorProto, values: NDArray[np.generic]) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values).reshape(np.shape(values)), tensor.name))


@mutation
def a_few_values(m: Mutant) -> None:
    tensor = m.weight(FLOAT)
    values = numpy_helper.to_array(tensor).copy()
    if not values.size:
        raise Pointless
    bad = m.rng.choice([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45, 1e20, 65504, 0.0])
    values.reshape(-1)[m.rng.randrange(values.size) :: max(1, values.size // 3)] = bad
    _put(tensor, values)


@mutation
def all_values(m: Mutant) -> None:
    tensor = m.weight(FLOAT)
    value = m.rng.choice([0.0, np.nan, 3e38, 1e-40, -1.0, 1e10])
    _put(tensor, np.full(tuple(tensor.dims), value, np.float32))


@mutation
def scaled(m: Mutant) -> None:
    tensor = m.weight(FLOAT)
    with np.errstate(over="ignore"):
        _put(tensor, numpy_helper.to_array(tensor) * np.float32(m.rng.choice([1e-30, 1e-10, 1e10, 1e30, -1.0])))


@mutation
def one_channel_scaled(m: Mutant) -> None:
    tensor = m.weight(FLOAT, least=1)
    values = numpy_helper.to_array(tensor).copy()
    if not values.size:
        raise Pointless
    with np.errstate(over="ignore"):
        values[m.rng.randrange(len(values))] *= np.float32(m.rng.choice([0, 1e-30, 1e6, 1e20]))
    _put(tensor, values)


@mutation
def of_other_type(m: Mutant) -> None:
    tensor = m.weight(FLOAT)
    values = numpy_helper.to_array(tensor)
    kind = m.rng.choice(["float64", "float16", "int64", "int32", "int8", "uint8", "bool"])
    with np.errstate(all="ignore"):
        _put(tensor, values.astype(kind))


@mutation
def of_strings(m: Mutant) -> None:
    tensor = m.weight()
    size = min(16, int(np.prod(tensor.dims)))
    tensor.CopyFrom(helper.make_tensor(tensor.name, TensorProto.STRING, [size], [b"x"] * size))


@mutation
def of_a_made_up_type(m: Mutant) -> None:
    m.weight().data_type = m.rng.choice([0, 14, 15, 16, 17, 21, 22, 23, 24, 25, 99])


@mutation
def empty(m: Mutant) -> None:
    tensor = m.weight(FLOAT)
    dims = list(tensor.dims) or [1]
    dims[m.rng.randrange(len(dims))] = 0
    _put(tensor, np.zeros(dims, np.float32))


@mutation
def a_scalar(m: Mutant) -> None:
    _put(m.weight(FLOAT), np.array(0.5, np.float32))


@mutation
def another_shape(m: Mutant) -> None:
    """The same values, with a dimension more, flat, or turned."""
    tensor = m.weight(FLOAT, least=1)
    values = numpy_helper.to_array(tensor)
    how = m.rng.choice(["more", "flat", "turned", "ones"])
    if how == "more":
        values = values[None]
    elif how == "flat":
        values = values.reshape(-1)
    elif how == "turned":
        values = values.T
    else:
        values = values.reshape(*values.shape, 1)
    _put(tensor, values)


@mutation
def another_width(m: Mutant) -> None:
    """One dimension is a little longer or shorter: it fits nothing any more."""
    tensor = m.weight(FLOAT, least=1)
    values = numpy_helper.to_array(tensor)
    along = m.rng.randrange(values.ndim)
    if not values.size:
        raise Pointless
    if m.rng.random() < 0.5:
        values = np.concatenate([values, values.take([0], along)], along)
    else:
        values = values.take(range(max(1, values.shape[along] - 1)), along)
    _put(tensor, values)


@mutation
def channels_dropped_everywhere(m: Mutant) -> None:
    """The first dimension of every weight of one size is shorter: some models still run, others mismatch."""
    size = m.weight(FLOAT, least=1).dims[0]
    for tensor in m.graph.initializer:
        if tensor.data_type == FLOAT and tensor.dims and tensor.dims[0] == size and size > 1:
            _put(tensor, numpy_helper.to_array(tensor)[:-1])


@mutation
def dims_wrong(m: Mutant) -> None:
    tensor = m.weight(least=1)
    tensor.dims[m.rng.randrange(len(tensor.dims))] = m.rng.choice([-1, 0, 1, 1 << 20, 1 << 40, 1 << 62])


@mutation
def dims_overflow(m: Mutant) -> None:
    m.weight().dims.extend([1 << 32, 1 << 32])


@mutation
def raw_data_wrong(m: Mutant) -> None:
    tensor = m.weight()
    raw = numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data
    tensor.raw_data = m.rng.choice([raw[:-1], raw + b"\0", raw[: len(raw) // 2], b"", raw + raw])


@mutation
def two_kinds_of_data(m: Mutant) -> None:
    """Values in the list of another type, beside those in raw_data or in their place."""
    tensor = m.weight()
    if m.rng.random() < 0.5:
        tensor.ClearField("raw_data")
    getattr(tensor, m.rng.choice(["int32_data", "int64_data", "float_data", "double_data", "uint64_data"])).extend(
        [1, 2, 3]
    )


@mutation
def half_in_int32_data(m: Mutant) -> None:
    """float16 as ONNX stores it outside raw_data: bits in int32_data; values beyond 16 bits are of no meaning."""
    tensor = m.weight(FLOAT)
    with np.errstate(over="ignore"):
        bits = numpy_helper.to_array(tensor).astype(np.float16).view(np.uint16).astype(np.int64).reshape(-1)
    dims = list(tensor.dims)
    tensor.CopyFrom(TensorProto(name=tensor.name, data_type=TensorProto.FLOAT16, dims=dims))
    tensor.int32_data.extend((bits + m.rng.choice([0, 1 << 20])).tolist())


@mutation
def shape_values(m: Mutant) -> None:
    """Values of an int64 weight: shapes, axes, pads, repeats."""
    tensor = m.weight(TensorProto.INT64)
    values = numpy_helper.to_array(tensor).copy()
    if not values.size:
        raise Pointless
    values.reshape(-1)[m.rng.randrange(values.size)] = m.rng.choice(
        [0, -1, 1, 7, -7, 1 << 20, 1 << 40, -(1 << 63), (1 << 63) - 1]
    )
    _put(tensor, values)


@mutation
def named_twice(m: Mutant) -> None:
    m.graph.initializer.add().CopyFrom(m.weight())


@mutation
def missing(m: Mutant) -> None:
    m.graph.initializer.remove(m.weight())


@mutation
def unused(m: Mutant) -> None:
    m.graph.initializer.append(numpy_helper.from_array(np.full((3, 3), np.nan, np.float32), "unused_weight"))


@mutation
def overridable(m: Mutant) -> None:
    tensor = m.weight()
    m.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))


@mutation
def sparse(m: Mutant) -> None:
    """A weight as sparse_initializer, sometimes with places outside its dimensions."""
    tensor = m.weight(FLOAT, least=1)
    values = numpy_helper.to_array(tensor).reshape(-1)
    if not values.size:
        raise Pointless
    places = np.arange(0, values.size, 2, dtype=np.int64) + m.rng.choice([0, 0, -5, 1 << 40])
    made = SparseTensorProto(dims=tensor.dims)
    made.values.CopyFrom(numpy_helper.from_array(values[::2], tensor.name))
    made.indices.CopyFrom(numpy_helper.from_array(places, tensor.name + "_places"))
    m.graph.initializer.remove(tensor)
    m.graph.sparse_initializer.append(made)


def _external(m: Mutant, location: str, offset: int | None, length: int | None) -> None:
    tensor = m.weight(FLOAT, least=1)
    raw = numpy_helper.to_array(tensor).tobytes()
    (m.folder / "weights.bin").write_bytes(raw)
    moved = TensorProto(
        name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, data_location=TensorProto.EXTERNAL
    )
    moved.external_data.add(key="location", value=location)
    if offset is not None:
        moved.external_data.add(key="offset", value=str(offset))
    if length is not None:
        moved.external_data.add(key="length", value=str(length if length >= 0 else len(raw)))
    tensor.CopyFrom(moved)


@mutation
def outside(m: Mutant) -> None:
    """In a file beside the model, as it should be."""
    _external(m, "weights.bin", m.rng.choice([None, 0]), m.rng.choice([None, -1]))


@mutation
def outside_wrong_place(m: Mutant) -> None:
    _external(m, "weights.bin", m.rng.choice([-1, 3, 1 << 20, 1 << 62]), m.rng.choice([None, -1, 0, 1 << 62]))


@mutation
def outside_wrong_length(m: Mutant) -> None:
    _external(m, "weights.bin", 0, m.rng.choice([0, 1, 3, 1 << 40]))


@mutation
def outside_wrong_file(m: Mutant) -> None:
    (m.folder / "link.bin").symlink_to("/etc/passwd")
    paths = ["../weights.bin", "/etc/passwd", "link.bin", "nowhere.bin", ".", "", "a\0b", "x" * 5000, "mutant.onnx"]
    _external(m, m.rng.choice(paths), None, None)


@mutation
def zero_point_or_scale(m: Mutant) -> None:
    """The scale of a quantized model is 0, NaN, negative or of another width, or its zero point of another type."""
    node = m.node("QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "MatMulInteger", "ConvInteger")
    tensor = m.one([t for t in m.graph.initializer if t.name in node.input[1:]])
    values = numpy_helper.to_array(tensor)
    if values.dtype == np.float32:
        _put(
            tensor,
            m.rng.choice(
                [np.zeros_like(values), -values, values * np.float32("nan"), np.ones(3, np.float32), values * 1e-40]
            ),
        )
        return
    _put(
        tensor,
        m.rng.choice(
            [values.astype(np.int32), values.astype(np.float32), np.zeros(3, values.dtype), values.astype(np.int16)]
        ),
    )


@mutation
def quantized_on_top(m: Mutant) -> None:
    """A pair of Q and DQ behind a tensor, with a scale that may make no sense."""
    node = m.one([n for n in m.graph.node if n.output and n.output[0] not in {o.name for o in m.graph.output}])
    name = node.output[0]
    scale = m.rng.choice([0.05, 0.0, -1.0, float("nan"), 1e-40, 1e30])
    m.graph.initializer.append(numpy_helper.from_array(np.float32(scale), "fuzz_scale"))
    kind = m.rng.choice([np.int8, np.uint8, np.int32, np.int16])
    m.graph.initializer.append(numpy_helper.from_array(np.array(0, kind), "fuzz_zero"))
    index = list(m.graph.node).index(node)
    for other in m.graph.node:
        other.input[:] = ["fuzz_dq" if n == name else n for n in other.input]
    m.graph.node.insert(index + 1, helper.make_node("QuantizeLinear", [name, "fuzz_scale", "fuzz_zero"], ["fuzz_q"]))
    m.graph.node.insert(
        index + 2, helper.make_node("DequantizeLinear", ["fuzz_q", "fuzz_scale", "fuzz_zero"], ["fuzz_dq"])
    )
