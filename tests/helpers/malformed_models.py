"""Truncated, corrupted and adversarial models, made deterministically. CASES: name -> (maker, must be refused)."""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper, parser

Maker = Callable[[Path], Path]
CASES: dict[str, tuple[Maker, bool]] = {}

FLOAT = TensorProto.FLOAT
HEAD = '<ir_version: 8, opset_import: ["": 17]>'


def base() -> ModelProto:
    """A small network with weights, a reshape, a constant node and symbolic shapes."""
    proto = parser.parse_model(
        HEAD
        + """net (float[N, 8] x) => (float[N, 4] y, float[M] z) {
            h = Gemm(x, w, b)
            r = Relu(h)
            c = Constant<value = float[4] {1, 2, 3, 4}>()
            y = Mul(r, c)
            z = Reshape(y, flat)
        }"""
    )
    rng = np.random.default_rng(0)
    for name, values in (
        ("w", rng.standard_normal((8, 4)).astype(np.float32)),
        ("b", np.zeros(4, np.float32)),
        ("flat", np.array([-1])),
    ):
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    return proto


def branches() -> ModelProto:
    """An If with weights in both branches."""
    proto = parser.parse_model(
        HEAD
        + """net (bool c, float[4] x) => (float[4] y) {
            y = If(c) <then_branch = yes () => (float[4] a) { a = Add(x, p) },
                       else_branch = no () => (float[4] b) { b = Mul(x, p) }>
        }"""
    )
    for attr in proto.graph.node[0].attribute:
        attr.g.initializer.append(numpy_helper.from_array(np.ones(4, np.float32), "p"))
    return proto


def case(name: str, *, refused: bool = True) -> Callable[[Maker], Maker]:
    """Register a maker that writes files into a folder and gives back the one to load."""

    def add(make: Maker) -> Maker:
        assert name not in CASES
        CASES[name] = (make, refused)
        return make

    return add


def edited(name: str, *, refused: bool = True, start: Callable[[], ModelProto] = base) -> Callable[..., None]:
    """Register an edit of a valid model."""

    def add(edit: Callable[[ModelProto], object]) -> None:
        def make(folder: Path) -> Path:
            proto = start()
            edit(proto)
            return save(proto, folder)

        case(name, refused=refused)(make)

    return add


def save(proto: ModelProto, folder: Path) -> Path:
    """Write without any check."""
    path = folder / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


# ------------------------------------------------------------------ bytes


def _bytes_case(name: str, content: Callable[[], bytes], *, refused: bool) -> None:
    def make(folder: Path) -> Path:
        path = folder / "m.onnx"
        path.write_bytes(content())
        return path

    case(name, refused=refused)(make)


def _flipped(seed: int, flips: int, start: Callable[[], ModelProto]) -> bytes:
    rng = np.random.default_rng(seed)
    content = bytearray(start().SerializeToString())
    for position in rng.integers(0, len(content), flips):
        content[position] ^= 1 << int(rng.integers(8))
    return bytes(content)


def _truncated(part: float, start: Callable[[], ModelProto]) -> bytes:
    content = start().SerializeToString()
    return content[: int(len(content) * part)]


def _spliced(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    content = base().SerializeToString()
    start, stop = sorted(rng.integers(0, len(content), 2))
    return content[:start] + content[stop:] if seed % 2 else content[:stop] + content[start:]


for _start in (base, branches):
    for _seed in range(30):
        _make = functools.partial(_flipped, _seed, 1 + _seed // 6, _start)
        _bytes_case(f"bits of {_start.__name__} flipped, seed {_seed}", _make, refused=False)
    for _percent in (2, 10, 30, 50, 70, 90, 95, 99):
        _bytes_case(
            f"{_start.__name__} cut to {_percent} %",
            functools.partial(_truncated, _percent / 100, _start),
            refused=True,
        )
for _seed in range(10):
    _bytes_case(f"part missing or doubled, seed {_seed}", functools.partial(_spliced, _seed), refused=False)
for _seed in range(5):
    _bytes_case(f"garbage {_seed}", np.random.default_rng(_seed).bytes(1 << (3 * _seed)).__bytes__, refused=True)
_bytes_case("zeros", lambda: b"\0" * 1000, refused=True)
_bytes_case("text", lambda: b"this is not a model\n" * 20, refused=True)
_bytes_case("a tensor", lambda: base().graph.initializer[0].SerializeToString(), refused=True)
_bytes_case("a bare graph", lambda: base().graph.SerializeToString(), refused=True)
_bytes_case("a bare node", lambda: base().graph.node[0].SerializeToString(), refused=True)
_bytes_case("an endless length", lambda: b"\x08\x08\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", refused=True)
_bytes_case("the model twice", lambda: base().SerializeToString() * 2, refused=True)
_bytes_case("garbage behind the model", lambda: base().SerializeToString() + b"\xff" * 50, refused=True)
_bytes_case("nested groups", lambda: b"\x0b" * 100_000, refused=True)
_bytes_case("nested messages", lambda: _nested_bytes(2000), refused=True)


def _nested_bytes(depth: int) -> bytes:
    """ModelProto.graph.node.attribute.g.node..., deeper than any stack should follow."""
    tags = (b"\x32", b"\x2a", b"\x0a")  # AttributeProto.g, NodeProto.attribute, GraphProto.node
    content = b""
    for level in range(depth):
        size, varint = len(content), b""
        while size > 127:
            varint, size = varint + bytes([size & 127 | 128]), size >> 7
        content = tags[level % 3] + varint + bytes([size]) + content
    return b"\x08\x08" + content


# ------------------------------------------------------------------ versions, names, structure


def _set(**fields: object) -> Callable[[ModelProto], object]:
    def edit(proto: ModelProto) -> None:
        for name, value in fields.items():
            setattr(proto, name, value)

    return edit


def _opset(version: int, domain: str = "") -> Callable[[ModelProto], object]:
    def edit(proto: ModelProto) -> None:
        proto.opset_import[0].version = version
        proto.opset_import[0].domain = domain

    return edit


edited("opset 0")(_opset(0))
edited("opset -1")(_opset(-1))
edited("opset 1000000000")(_opset(10**9))
edited("only an unknown opset")(_opset(1, "my.domain"))
edited("no opset")(lambda m: m.ClearField("opset_import"))
edited("IR version 1000000")(_set(ir_version=10**6))
edited("IR version -3")(_set(ir_version=-3))
edited("IR version 0")(_set(ir_version=0))
edited("no graph")(lambda m: m.ClearField("graph"))
edited("an empty graph")(lambda m: m.graph.CopyFrom(GraphProto()))
edited("no nodes")(lambda m: m.graph.ClearField("node"))
edited("no outputs", refused=False)(lambda m: m.graph.ClearField("output"))
edited("no inputs")(lambda m: m.graph.ClearField("input"))
edited("no weights")(lambda m: m.graph.ClearField("initializer"))
edited("unsorted nodes", refused=False)(lambda m: _reorder(m.graph))
edited("cycle of two")(lambda m: _replace_input(m, 1, "y"))
edited("node that reads itself")(lambda m: _replace_input(m, 1, "r"))
edited("unknown operator")(lambda m: setattr(m.graph.node[1], "op_type", "Frobnicate"))
edited("unknown operator with line breaks")(lambda m: setattr(m.graph.node[1], "op_type", "A\nB\x1b[2J\r\n"))
edited("unknown domain", refused=False)(lambda m: setattr(m.graph.node[1], "domain", "acme"))
edited("operator without a name")(lambda m: setattr(m.graph.node[1], "op_type", ""))
edited("input that nothing makes")(lambda m: _replace_input(m, 1, "nothing\nat all"))
edited("output that nothing makes")(lambda m: setattr(m.graph.output[0], "name", "nothing"))
edited("output without a name")(lambda m: setattr(m.graph.output[0], "name", ""))
edited("input without a name")(lambda m: setattr(m.graph.input[0], "name", ""))
edited("input listed twice")(lambda m: m.graph.input.append(m.graph.input[0]))
edited("output listed twice", refused=False)(lambda m: m.graph.output.append(m.graph.output[0]))
edited("tensor made twice")(lambda m: m.graph.node.append(m.graph.node[1]))
edited("one node makes a tensor twice")(lambda m: m.graph.node[0].output.append("h"))
edited("node makes a weight")(lambda m: m.graph.node[1].output.__setitem__(0, "w"))
edited("node makes an input")(lambda m: m.graph.node[1].output.__setitem__(0, "x"))
edited("too few inputs")(lambda m: m.graph.node[3].input.pop())
edited("too many inputs")(lambda m: m.graph.node[1].input.extend(["x"] * 1000))
edited("weight stored twice")(lambda m: m.graph.initializer.append(m.graph.initializer[0]))
edited("weight without a name")(lambda m: setattr(m.graph.initializer[0], "name", ""))
edited("unknown type of an input", refused=False)(
    lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 12345)
)
edited("negative and huge shapes", refused=False)(lambda m: _input_shape(m, [-5, 1 << 62]))
edited("an input without type")(lambda m: m.graph.input[0].ClearField("type"))


def _reorder(graph: GraphProto) -> None:
    nodes = list(graph.node)[::-1]
    del graph.node[:]
    graph.node.extend(nodes)


def _replace_input(proto: ModelProto, node: int, name: str) -> None:
    proto.graph.node[node].input[0] = name


def _input_shape(proto: ModelProto, dims: list[int]) -> None:
    for dim, value in zip(proto.graph.input[0].type.tensor_type.shape.dim, dims, strict=True):
        dim.dim_value = value


def _not_utf8(find: bytes, put: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = save(base(), folder)
        content = path.read_bytes()
        assert content.count(find) >= 1
        path.write_bytes(content.replace(find, put))
        return path

    return make


case("tensor name is not UTF-8")(_not_utf8(b"\x01h", b"\x01\xff"))
case("operator name is not UTF-8")(_not_utf8(b"Relu", b"Re\xfe\xff"))
case("graph name is not UTF-8")(_not_utf8(b"\x03net", b"\x03n\xc3("))
case("symbolic dimension is not UTF-8")(_not_utf8(b"\x12\x01N", b"\x12\x01\xff"))

# ------------------------------------------------------------------ weights


def _tensor(**fields: object) -> Callable[[ModelProto], object]:
    """Set fields of the weight w; lists replace."""

    def edit(proto: ModelProto) -> None:
        tensor = proto.graph.initializer[0]
        for name, value in fields.items():
            if isinstance(value, list):
                tensor.ClearField(name)
                getattr(tensor, name).extend(value)
            else:
                setattr(tensor, name, value)

    return edit


for _dims in ([1 << 60, 4], [1 << 62, 1 << 62, 4], [-8, 4], [-1], [8, 5], [8, 3], [], [0], [1 << 63 - 1], [1] * 100):
    edited(f"dims {str(_dims)[:40]}")(_tensor(dims=_dims))
edited("dims with 0 and huge ones")(_tensor(dims=[0, 1 << 62, 1 << 62], raw_data=b""))
edited("no dims and 70 of them 0")(_tensor(dims=[0] * 70, raw_data=b""))
edited("raw data shorter")(_tensor(raw_data=b"\0" * 127))
edited("raw data longer")(_tensor(raw_data=b"\0" * 129))
edited("raw data empty")(_tensor(raw_data=b""))
edited("values missing")(lambda m: m.graph.initializer[0].ClearField("raw_data"))
edited("values in another field")(lambda m: _typed(m, "int32_data", [1] * 32))
edited("too many values")(lambda m: _typed(m, "float_data", [1.0] * 33))
edited("undefined type")(_tensor(data_type=0))
edited("unknown type")(_tensor(data_type=77))
edited("negative type")(_tensor(data_type=-1))
edited("complex type, wrong count")(_tensor(data_type=TensorProto.COMPLEX128))
edited("4-bit type, wrong count")(_tensor(data_type=TensorProto.INT4))
edited("string type over raw data")(_tensor(data_type=TensorProto.STRING))
edited("strings, wrong count")(lambda m: _typed(m, "string_data", [b"a"] * 5, TensorProto.STRING))
edited("segmented tensor")(lambda m: setattr(m.graph.initializer[0].segment, "end", 4))
edited("type of another operator's weight", refused=False)(_tensor(data_type=TensorProto.INT32))
edited("zero-size weight", refused=False)(_tensor(dims=[8, 0], raw_data=b""))


def _typed(proto: ModelProto, field: str, values: list[object], data_type: int = FLOAT) -> None:
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_type = data_type
    getattr(tensor, field).extend(values)


@edited("everything has size zero", refused=False)
def _all_empty(proto: ModelProto) -> None:
    for tensor, dims in zip(proto.graph.initializer, ([0, 0], [0], [0]), strict=True):
        tensor.raw_data = b""
        tensor.ClearField("dims")
        tensor.dims.extend(dims)


def _sparse(dims: list[int], indices: object, values: object = (1.0, 2.0)) -> Callable[[ModelProto], object]:
    def edit(proto: ModelProto) -> None:
        del proto.graph.initializer[0]
        proto.graph.sparse_initializer.append(
            onnx.SparseTensorProto(
                dims=dims,
                values=numpy_helper.from_array(np.asarray(values, np.float32), "w"),
                indices=numpy_helper.from_array(np.asarray(indices), "w_indices"),
            )
        )

    return edit


edited("sparse weight", refused=False)(_sparse([8, 4], [0, 31]))
edited("sparse: index too large")(_sparse([8, 4], [0, 32]))
edited("sparse: negative index")(_sparse([8, 4], [-1, 3]))
edited("sparse: coordinates too large")(_sparse([8, 4], [[0, 0], [7, 4]]))
edited("sparse: wrong rank of coordinates")(_sparse([8, 4], [[0, 0, 0], [1, 1, 1]]))
edited("sparse: counts differ")(_sparse([8, 4], [0, 1, 2]))
edited("sparse: huge")(_sparse([1 << 40, 1 << 40], [0, 1]))
edited("sparse: many gigabytes")(_sparse([1 << 16, 1 << 16], [0, 1]))
edited("sparse: negative dims")(_sparse([-8, 4], [0, 1]))
edited("sparse: indices are floats")(_sparse([8, 4], [0.5, 1.5]))
edited("sparse: 100 dims")(_sparse([1] * 100, [0, 0]))

# ------------------------------------------------------------------ external data


def _external(name: str, *, refused: bool = True, prepare: Callable[[Path], object] = lambda folder: None) -> None:
    """Register w stored outside, with the given entries; the data file data.bin of 128 bytes is there."""
    entries = dict(EXTERNAL[name])

    def make(folder: Path) -> Path:
        inner = folder / "model"
        inner.mkdir()
        (inner / "data.bin").write_bytes(b"\0" * 128)
        (folder / "secret.bin").write_bytes(b"\1" * 128)
        prepare(inner)
        proto = base()
        tensor = proto.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=value.replace("FOLDER", str(folder)))
        return save(proto, inner)

    case(f"external: {name}", refused=refused)(make)


EXTERNAL: dict[str, dict[str, str]] = {
    "fine": {"location": "data.bin"},
    "missing": {"location": "missing.bin"},
    "parent folder": {"location": "../secret.bin"},
    "parent folder inside": {"location": "a/../../secret.bin"},
    "absolute": {"location": "FOLDER/secret.bin"},
    "device": {"location": "/dev/zero"},
    "link out of the folder": {"location": "link.bin"},
    "linked folder": {"location": "up/secret.bin"},
    "loop of links": {"location": "loop.bin"},
    "empty location": {"location": ""},
    "no location": {"offset": "0"},
    "a folder": {"location": "sub"},
    "the folder itself": {"location": "."},
    "a pipe": {"location": "pipe"},
    "long name": {"location": "a" * 5000},
    "zero byte in the name": {"location": "data\0.bin"},
    "line break in the name": {"location": "data\n.bin"},
    "backslashes": {"location": "..\\secret.bin"},
    "offset outside": {"location": "data.bin", "offset": "128", "length": "128"},
    "offset beyond 64 bits": {"location": "data.bin", "offset": "9" * 30},
    "negative offset": {"location": "data.bin", "offset": "-64"},
    "offset is text": {"location": "data.bin", "offset": "here"},
    "offset of 5000 digits": {"location": "data.bin", "offset": "9" * 5000},
    "length outside": {"location": "data.bin", "length": "1000"},
    "length too short": {"location": "data.bin", "length": "64"},
    "negative length": {"location": "data.bin", "length": "-128"},
    "length is text": {"location": "data.bin", "length": "1e3"},
    "length is infinite": {"location": "data.bin", "length": "inf"},
}


def _links(folder: Path) -> None:
    (folder / "link.bin").symlink_to("../secret.bin")
    (folder / "up").symlink_to("..")
    (folder / "loop.bin").symlink_to("loop.bin")
    (folder / "sub").mkdir()


def _pipe(folder: Path) -> None:
    import os

    os.mkfifo(folder / "pipe")


for _name in EXTERNAL:
    _external(_name, refused=_name != "fine", prepare=_pipe if _name == "a pipe" else _links)


@edited("external: inside a constant node")
def _external_attribute(proto: ModelProto) -> None:
    tensor = proto.graph.node[2].attribute[0].t
    tensor.CopyFrom(TensorProto(data_type=FLOAT, dims=[4], data_location=TensorProto.EXTERNAL))
    tensor.external_data.add(key="location", value="../../../../etc/passwd")


# ------------------------------------------------------------------ attributes and subgraphs


def _attribute(attr: AttributeProto, node: int = 0) -> Callable[[ModelProto], object]:
    return lambda proto: proto.graph.node[node].attribute.append(attr)


edited("attribute of the wrong type")(_attribute(helper.make_attribute("alpha", [1, 2, 3])))
edited("attribute with another field set", refused=False)(
    _attribute(AttributeProto(name="alpha", type=AttributeProto.FLOAT, i=3))
)
edited("attribute with all fields set", refused=False)(
    _attribute(AttributeProto(name="alpha", type=AttributeProto.FLOAT, f=1, i=3, s=b"x", ints=[1]))
)
edited("attribute without a type")(_attribute(AttributeProto(name="alpha", f=1.0)))
edited("attribute without a name")(_attribute(AttributeProto(type=AttributeProto.FLOAT, f=1.0)))
edited("unknown attribute")(_attribute(helper.make_attribute("colour", "red")))
edited("attribute twice", refused=False)(
    lambda m: m.graph.node[0].attribute.extend([helper.make_attribute("alpha", 1.0)] * 2)
)
edited("reference attribute outside a function", refused=False)(
    _attribute(AttributeProto(name="alpha", type=AttributeProto.FLOAT, ref_attr_name="outer"))
)
edited("graph attribute where a number belongs")(_attribute(helper.make_attribute("alpha", base().graph)))
edited("constant without a value", refused=False)(lambda m: m.graph.node[2].ClearField("attribute"))
edited("constant with wrong count")(lambda m: m.graph.node[2].attribute[0].t.dims.append(7))
edited("constant with huge dims")(lambda m: m.graph.node[2].attribute[0].t.dims.append(1 << 60))
edited("constant of unknown type")(lambda m: setattr(m.graph.node[2].attribute[0].t, "data_type", 99))
edited("branch missing", start=branches)(lambda m: m.graph.node[0].attribute.pop())
edited("branch without outputs", start=branches, refused=False)(lambda m: _branch(m).ClearField("output"))
edited("branch is empty", start=branches, refused=False)(lambda m: _branch(m).CopyFrom(GraphProto(name="yes")))
edited("branch output that nothing makes", start=branches)(lambda m: setattr(_branch(m).output[0], "name", "q"))
edited("branch shadows an outer tensor", start=branches)(lambda m: _branch(m).node[0].output.__setitem__(0, "x"))
edited("branch weight has huge dims", start=branches)(lambda m: _branch(m).initializer[0].dims.append(1 << 61))
edited("branch reads what is made later", start=branches)(lambda m: _branch(m).node[0].input.__setitem__(0, "y"))
edited("branches listed as GRAPHS", start=branches)(
    lambda m: m.graph.node[0].attribute[0].CopyFrom(helper.make_attribute("then_branch", [_branch(m)]))
)


def _branch(proto: ModelProto) -> GraphProto:
    return proto.graph.node[0].attribute[0].g


def nested(depth: int) -> ModelProto:
    """An If in an If in an If."""
    proto = branches()
    outer = GraphProto()
    outer.CopyFrom(proto.graph)
    innermost = proto.graph
    for level in range(depth):
        graph = innermost.node[0].attribute[0].g
        graph.name = f"level {level}"
        graph.ClearField("initializer")
        node = NodeProto()
        node.CopyFrom(outer.node[0])
        node.output[0] = graph.output[0].name = f"y{level}"
        for attr in node.attribute:
            attr.g.node[0].output[0] = attr.g.output[0].name = f"{attr.g.output[0].name}{level}"
        graph.node[0].CopyFrom(node)
        innermost = graph
    return proto


case("20 nested branches", refused=False)(lambda folder: save(nested(20), folder))


@case("500 nested branches")
def _nested_branches(folder: Path) -> Path:
    content = b""
    for level in range(500):
        for tag in (b"\x32", b"\x2a", b"\x0a"):
            content = tag + _varint(len(content)) + content
        content += b"\x0a" + _varint(4) + b"\x22\x02If" if level == 0 else b""
    path = folder / "m.onnx"
    path.write_bytes(b"\x08\x08\x3a" + _varint(len(content)) + content + b"\x42\x02\x10\x11")
    return path


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


# ------------------------------------------------------------------ size


@case("a chain of 60000 nodes", refused=False)
def _chain(folder: Path) -> Path:
    count = 60_000
    nodes = [helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"], name=f"n{i}") for i in range(count)]
    value = [helper.make_tensor_value_info(f"t{i}", FLOAT, [1]) for i in (0, count)]
    graph = helper.make_graph(nodes, "chain", value[:1], value[1:])
    return save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder)


@case("a chain of 10000 nodes that do nothing", refused=False)
def _idle(folder: Path) -> Path:
    count = 10_000
    nodes = [helper.make_node("Identity", [f"t{i}"], [f"t{i + 1}"]) for i in range(count)]
    value = [helper.make_tensor_value_info(f"t{i}", FLOAT, [1]) for i in (0, count)]
    graph = helper.make_graph(nodes, "chain", value[:1], value[1:])
    return save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder)


@case("20000 nodes that nothing needs", refused=False)
def _dead(folder: Path) -> Path:
    proto = base()
    proto.graph.node.extend(helper.make_node("Relu", [f"d{i}" if i else "x"], [f"d{i + 1}"]) for i in range(20_000))
    return save(proto, folder)


@case("10000 readers of one tensor", refused=False)
def _fan(folder: Path) -> Path:
    proto = base()
    proto.graph.node.extend(helper.make_node("Identity", ["x"], [f"d{i}"]) for i in range(10_000))
    proto.graph.node.append(helper.make_node("Sum", [f"d{i}" for i in range(10_000)], ["s"]))
    proto.graph.output.append(helper.make_tensor_value_info("s", FLOAT, ["N", 8]))
    return save(proto, folder)


@case("a fold of 40 doublings", refused=False)
def _doublings(folder: Path) -> Path:
    """Constant folding without a limit would make 2^40 values of these 40 nodes."""
    nodes = [helper.make_node("Concat", [f"c{i}", f"c{i}"], [f"c{i + 1}"], axis=0) for i in range(40)]
    value = [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in (("x", [1]), ("y", ["N"]))]
    graph = helper.make_graph([*nodes, helper.make_node("Add", ["x", "c40"], ["y"])], "fold", value[:1], value[1:])
    graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), "c0"))
    return save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder)


@case("a tensor of 2^50 values from a constant shape", refused=False)
def _huge_fill(folder: Path) -> Path:
    proto = parser.parse_model(
        HEAD
        + """fill (float[1] x) => (float[N] y) {
            s = Constant<value = int64[2] {33554432, 33554432}>()
            f = ConstantOfShape(s)
            y = Add(x, f)
        }"""
    )
    return save(proto, folder)
