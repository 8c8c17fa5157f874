"""What goes in comes out: names, types, documentation, metadata, weights of every kind, inside and outside the file."""

import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from fixture_data import session
from load_and_save import TRANSFORMS, load_and_save
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper, parser

from onnxshot.delivery.write_results import Made
from onnxshot.errors import UsageError
from onnxshot.graph import Model, edit, save, weights
from onnxshot.graph.load import load_model

HEAD = '<ir_version: 10, opset_import: ["": 21]>'
F = np.float32


def tidy(message: Any) -> Any:
    """A copy without empty texts: whether they are there makes no difference, and protobuf tells them apart."""
    copy = type(message)()
    copy.CopyFrom(message)
    for field, value in copy.ListFields():
        if field.is_repeated and field.message_type:
            kept = [tidy(item) for item in value]
            copy.ClearField(field.name)
            getattr(copy, field.name).extend(kept)
        elif field.message_type:
            value.CopyFrom(tidy(value))
        elif isinstance(value, str) and not value:
            copy.ClearField(field.name)
    return copy


def saved(path: Path, out: Path) -> ModelProto:
    return onnx.load(str(load_and_save(path, out, TRANSFORMS["save"])))


def network() -> ModelProto:
    """MatMul and Add with weights of 4 KiB and 64 bytes, symbolic shapes and Relu."""
    made = parser.parse_model(
        HEAD
        + """g (float[batch, 64] x) => (float[batch, 16] y, float[n] z) {
            m = MatMul(x, w) a = Add(m, b) y = Relu(a) z = Reshape(y, s)
        }"""
    )
    rng = np.random.default_rng(0)
    for name, values in (("w", rng.normal(size=(64, 16))), ("b", rng.normal(size=16))):
        made.graph.initializer.append(numpy_helper.from_array(values.astype(F), name))
    made.graph.initializer.append(numpy_helper.from_array(np.array([-1]), "s"))
    return made


def external(folder: Path, proto: ModelProto | None = None, **options: Any) -> Path:
    """Write with weights in w.bin; but for those of a few bytes, as ORT wants shapes such as s inside."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(
        proto or network(),
        str(folder / "m.onnx"),
        save_as_external_data=True,
        location="w.bin",
        size_threshold=45,
        **options,
    )
    return folder / "m.onnx"


def same_outputs(a: Path, b: Path) -> None:
    feed = {"x": np.random.default_rng(1).normal(size=(3, 64)).astype(F)}
    for x, y in zip(session(a).run(None, feed), session(b).run(None, feed), strict=True):
        assert np.array_equal(x, y)


# ------------------------------------------------------------------ everything around the weights


def decorated() -> ModelProto:
    """A model with everything a ModelProto has room for."""
    made = network()
    made.producer_name, made.producer_version, made.domain, made.model_version = "tool", "1.2", "acme", 7
    made.doc_string, made.graph.doc_string = "the model\nhas two lines", "the graph"
    made.opset_import.insert(0, helper.make_opsetid("com.microsoft", 1))
    made.opset_import.append(helper.make_opsetid("acme", 3))
    made.metadata_props.add(key="labels", value="cat,dog")
    made.graph.metadata_props.add(key="where", value="graph")
    node = made.graph.node[0]
    node.name, node.doc_string = "first", "the node"
    node.metadata_props.add(key="namespace", value="encoder/0")
    for name, kind, shape in (("m", TensorProto.FLOAT, ["batch", 16]), ("a", TensorProto.FLOAT, None)):
        made.graph.value_info.append(helper.make_tensor_value_info(name, kind, shape, "an inner tensor"))
    made.graph.input[0].doc_string = "the input"
    made.graph.input[0].type.denotation = "IMAGE"
    made.graph.input[0].metadata_props.add(key="layout", value="NC")
    made.graph.output[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    made.graph.initializer.append(numpy_helper.from_array(F(0.1), "a_scale"))
    annotation = made.graph.quantization_annotation.add(tensor_name="a")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="a_scale")
    made.functions.append(
        helper.make_function(
            "acme", "Twice", ["p"], ["q"], [helper.make_node("Add", ["p", "p"], ["q"])], [helper.make_opsetid("", 21)]
        )
    )
    made.training_info.add().algorithm.name = "sgd"
    return made


def test_everything_around_the_weights_is_kept(tmp_path: Path) -> None:
    before = decorated()
    (tmp_path / "m.onnx").write_bytes(before.SerializeToString())
    after = saved(tmp_path / "m.onnx", tmp_path / "o.onnx")
    for part in (before, after):
        tensors = sorted(part.graph.initializer, key=lambda t: t.name)
        infos = sorted(part.graph.value_info, key=lambda v: v.name)
        del part.graph.initializer[:], part.graph.value_info[:]
        part.graph.initializer.extend(tensors)
        part.graph.value_info.extend(infos)
    assert tidy(after) == tidy(before)


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(decorated().SerializeToString())
    load_and_save(tmp_path / "m.onnx", tmp_path / "a.onnx", TRANSFORMS["save"])
    load_and_save(tmp_path / "a.onnx", tmp_path / "b.onnx", TRANSFORMS["save"])
    load_and_save(tmp_path / "m.onnx", tmp_path / "c.onnx", TRANSFORMS["save"])
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "c.onnx").read_bytes()


def test_annotations_of_tensors_that_went_go_with_them() -> None:
    model = load_model(decorated())
    node = edit.producer(model.tensors()["y"])
    assert node is not None
    edit.bypass(model, node, node.inputs[0])
    made = model.to_proto()
    assert [q.tensor_name for q in made.graph.quantization_annotation] == []
    assert [v.name for v in made.graph.value_info] == ["m"]


def test_inputs_of_every_kind_keep_their_types(tmp_path: Path) -> None:
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, ["n", None, 3])
    kinds = {
        "unranked": helper.make_tensor_type_proto(TensorProto.FLOAT, None),
        "scalar": helper.make_tensor_type_proto(TensorProto.INT64, []),
        "sequence": helper.make_sequence_type_proto(tensor),
        "optional": helper.make_optional_type_proto(helper.make_sequence_type_proto(tensor)),
        "map": helper.make_map_type_proto(TensorProto.STRING, tensor),
        "sparse": helper.make_sparse_tensor_type_proto(TensorProto.FLOAT, [3]),
        "text": helper.make_tensor_type_proto(TensorProto.STRING, [None]),
    }
    infos = [helper.make_value_info(name, kind) for name, kind in kinds.items()]
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in ("sequence", "optional", "unranked")]
    outs = [helper.make_value_info(f"{name}_out", kinds[name]) for name in ("sequence", "optional", "unranked")]
    before = helper.make_model(
        helper.make_graph(nodes, "g", infos, outs), opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )
    (tmp_path / "m.onnx").write_bytes(before.SerializeToString())
    assert tidy(saved(tmp_path / "m.onnx", tmp_path / "o.onnx")) == tidy(before)


def attributes() -> list[AttributeProto]:
    tensor = numpy_helper.from_array(F([1, 2]), "t")
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(F([1]), "v"), numpy_helper.from_array(np.array([3]), "i"), [4]
    )
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT, ["n"])
    graph = parser.parse_graph("inner (float[2] p) => (float[2] q) { q = Relu(p) }")
    empty = [
        helper.make_attribute(f"empty{kind}", [], attr_type=kind)
        for kind in (AttributeProto.FLOATS, AttributeProto.INTS, AttributeProto.STRINGS, AttributeProto.TENSORS)
    ]
    values: dict[str, Any] = {
        "int": -(1 << 63),
        "float": 1 / 3,
        "nan": float("nan"),
        "string": "text",
        "bytes": b"\xff\xfe not UTF-8",
        "nothing": "",
        "ints": [1, -2, 1 << 62],
        "floats": [1.0, 2.5, float("inf")],
        "strings": [b"a", b"\xff"],
        "tensor": tensor,
        "tensors": [tensor, tensor],
        "sparse": sparse,
        "sparses": [sparse],
        "type": kind,
        "types": [kind, kind],
        "graph": graph,
    }
    return [*(helper.make_attribute(k, v) for k, v in values.items()), *empty]


def test_attributes_of_every_type_are_kept(tmp_path: Path) -> None:
    before = network()
    before.opset_import.append(helper.make_opsetid("acme", 1))
    node = helper.make_node("Anything", ["x"], ["extra"], domain="acme")
    node.attribute.extend(attributes())
    before.graph.node.append(node)
    (tmp_path / "m.onnx").write_bytes(before.SerializeToString())
    after = saved(tmp_path / "m.onnx", tmp_path / "o.onnx").graph.node[-1]
    texts = [{a.name: tidy(a).SerializeToString(deterministic=True) for a in n.attribute} for n in (node, after)]
    assert texts[0] == texts[1]


# ------------------------------------------------------------------ weights


DTYPES = [
    *(np.dtype(name) for name in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?", "c8", "c16")),
    *(
        np.dtype(getattr(ml_dtypes, name))
        for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "int4", "uint4")
    ),
]


def holding(tensor: TensorProto) -> ModelProto:
    """A model that reads one weight of any type, in a custom operator."""
    made = parser.parse_model(
        '<ir_version: 10, opset_import: ["": 21, "acme": 1]> g (float[1] x) => (float[1] y) { y = acme.Use(x, w) }'
    )
    made.graph.initializer.append(tensor)
    return made


@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 7)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("where", ["inside", "outside", "made"])
def test_weights_of_every_type(dtype: np.dtype[Any], shape: tuple[int, ...], where: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    tensor = numpy_helper.from_array(values, "w")
    path = tmp_path / "m.onnx"
    if where == "outside":
        path = external(tmp_path, holding(tensor))
    else:
        onnx.save(holding(tensor), str(path))
    model = load_model(path)
    (constant,) = model.constants()
    assert weights.read(constant).tobytes() == values.tobytes()
    assert weights.read(constant).dtype == values.dtype
    assert weights.elem_type(constant) == tensor.data_type
    if where == "made":
        new = edit.add_constant(model, "w", "new", weights.ComputedValues(shape, dtype, lambda: values))
        edit.replace_uses(model, constant, new)
    (tmp_path / "out").mkdir()
    for external_data in (False, True):
        out = tmp_path / "out" / f"{external_data}.onnx"
        save.write(model, out, external=external_data)
        (after,) = onnx.load(str(out)).graph.initializer
        assert list(after.dims) == list(shape)
        assert numpy_helper.to_array(after).dtype == values.dtype
        assert numpy_helper.to_array(after).tobytes() == values.tobytes()


@pytest.mark.parametrize("field", ["float_data", "int64_data", "string_data", "int32_data", "packed"])
def test_weights_in_typed_fields(field: str, tmp_path: Path) -> None:
    tensor = {
        "float_data": helper.make_tensor("w", TensorProto.FLOAT, [2, 2], [1, 2, 3, 4]),
        "int64_data": helper.make_tensor("w", TensorProto.INT64, [2, 2], [1, 2, 3, 1 << 40]),
        "string_data": helper.make_tensor("w", TensorProto.STRING, [2, 2], [b"a", b"", "ä".encode(), b"\xff"]),
        "int32_data": helper.make_tensor("w", TensorProto.FLOAT16, [2], [1.5, 2.5]),
        "packed": helper.make_tensor("w", TensorProto.INT4, [3], [1, -2, 3]),
    }[field]
    onnx.save(holding(tensor), str(tmp_path / "m.onnx"))
    (constant,) = load_model(tmp_path / "m.onnx").constants()
    assert weights.read(constant).shape == tuple(tensor.dims)
    assert saved(tmp_path / "m.onnx", tmp_path / "o.onnx").graph.initializer[0] == tensor


@pytest.mark.parametrize("layout", ["linear", "coordinates"])
def test_sparse_weights_become_dense(layout: str, tmp_path: Path) -> None:
    before = network()
    dense = np.zeros((64, 16), F)
    places = np.array([[0, 3], [5, 0], [63, 15]])
    dense[tuple(places.T)] = [1, 2, 3]
    indices = places if layout == "coordinates" else places[:, 0] * 16 + places[:, 1]
    del before.graph.initializer[0]
    before.graph.sparse_initializer.append(
        helper.make_sparse_tensor(
            numpy_helper.from_array(F([1, 2, 3]), "w"), numpy_helper.from_array(indices, "w_indices"), [64, 16]
        )
    )
    onnx.save(before, str(tmp_path / "m.onnx"))
    after = saved(tmp_path / "m.onnx", tmp_path / "o.onnx")
    stored = next(t for t in after.graph.initializer if t.name == "w")
    assert np.array_equal(numpy_helper.to_array(stored), dense)
    same_outputs(tmp_path / "m.onnx", tmp_path / "o.onnx")


# ------------------------------------------------------------------ external data


def test_external_weights_are_mapped_and_never_kept(tmp_path: Path) -> None:
    model = load_model(external(tmp_path))
    outside = [c for c in model.constants() if c.name != "s"]
    assert len(outside) == 2
    for constant in outside:
        values = weights.read(constant)
        assert isinstance(values, np.memmap)
        assert not values.flags.writeable
        assert weights.read(constant) is not values
        assert isinstance(constant._values, weights.StoredValues)


@pytest.mark.parametrize("given", ["relative", "absolute", "from inside"])
def test_external_data_works_from_any_folder(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = external(tmp_path / "models" / "one")
    other = tmp_path / "elsewhere"
    other.mkdir()
    monkeypatch.chdir(path.parent if given == "from inside" else other)
    source = {"relative": Path("../models/one/m.onnx"), "absolute": path, "from inside": Path("m.onnx")}[given]
    target = {"relative": Path("o.onnx"), "absolute": tmp_path / "new" / "o.onnx", "from inside": Path("o.onnx")}[given]
    out = load_and_save(source, target, TRANSFORMS["save"]).resolve()
    assert sorted(p.name for p in out.parent.glob("o.*")) == ["o.onnx", "o.onnx.data"]
    os.chdir("/")
    same_outputs(path, out)


def test_small_weights_stay_inside_and_large_ones_are_aligned(tmp_path: Path) -> None:
    out = load_and_save(external(tmp_path), tmp_path / "o.onnx", TRANSFORMS["save"])
    tensors = {t.name: t for t in onnx.load(str(out), load_external_data=False).graph.initializer}
    assert tensors["w"].data_location == TensorProto.EXTERNAL
    assert all(tensors[name].data_location == TensorProto.DEFAULT for name in ("b", "s"))
    entries = {e.key: e.value for e in tensors["w"].external_data}
    assert entries["location"] == "o.onnx.data"
    assert int(entries["offset"]) % 4096 == 0
    assert int(entries["length"]) == 64 * 16 * 4


def test_a_model_of_one_file_stays_one_file_below_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(network(), str(tmp_path / "m.onnx"))
    load_and_save(tmp_path / "m.onnx", tmp_path / "one" / "o.onnx", TRANSFORMS["save"])
    monkeypatch.setattr(weights, "EXTERNAL_LIMIT", 1000)
    load_and_save(tmp_path / "m.onnx", tmp_path / "two" / "o.onnx", TRANSFORMS["save"])
    assert [p.name for p in (tmp_path / "one").iterdir()] == ["o.onnx"]
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == ["o.onnx", "o.onnx.data"]
    same_outputs(tmp_path / "one" / "o.onnx", tmp_path / "two" / "o.onnx")


def test_a_model_whose_weights_were_outside_stays_so_when_they_change(tmp_path: Path) -> None:
    model = load_model(external(tmp_path / "in"))
    for constant in model.constants():
        values = weights.read(constant) * 1
        new = edit.add_constant(model, constant.name, "new", values)
        edit.replace_uses(model, constant, new)
    assert save.write(model, tmp_path / "o.onnx") == ["o.onnx", "o.onnx.data"]


def test_no_data_file_is_left_where_all_weights_are_small(tmp_path: Path) -> None:
    made = parser.parse_model(HEAD + "g (float[16] x) => (float[16] y) { y = Add(x, b) }")
    made.graph.initializer.append(numpy_helper.from_array(np.ones(16, F), "b"))
    model = load_model(external(tmp_path / "in", made))
    assert model.external_data
    (tmp_path / "out").mkdir()
    assert save.write(model, tmp_path / "out" / "o.onnx") == ["o.onnx"]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["o.onnx"]


def test_a_constant_node_may_keep_its_values_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = parser.parse_model(
        HEAD + "g (float[4] x) => (float[4] y) { c = Constant<value = float[4] {1, 2, 3, 4}>() y = Add(x, c) }"
    )
    made.graph.node[0].attribute[0].t.CopyFrom(numpy_helper.from_array(F([1, 2, 3, 4]), "c"))
    path = external(tmp_path / "in", made, convert_attribute=True)
    assert (path.parent / "w.bin").stat().st_size == 16
    monkeypatch.chdir(tmp_path)
    out = load_and_save(path, tmp_path / "out" / "o.onnx", TRANSFORMS["save"])
    assert session(out).run(None, {"x": np.zeros(4, F)})[0].tolist() == [1, 2, 3, 4]


# ------------------------------------------------------------------ drafts


def contents(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return load_model(external(tmp_path / "in"))


def test_a_draft_that_is_not_published_leaves_nothing(model: Model, tmp_path: Path) -> None:
    before = contents(tmp_path)
    with save.draft(model, tmp_path / "new" / "deep" / "o.onnx") as written:
        assert written.path.exists()
        assert onnx.load(str(written.path)).graph.node
    assert contents(tmp_path) == before


def test_an_error_while_a_draft_is_checked_leaves_nothing(model: Model, tmp_path: Path) -> None:
    before = contents(tmp_path)
    with pytest.raises(KeyboardInterrupt), save.draft(model, tmp_path / "new" / "o.onnx"):
        raise KeyboardInterrupt
    assert contents(tmp_path) == before


def test_an_error_while_writing_leaves_nothing(model: Model, tmp_path: Path) -> None:
    def fail() -> Any:
        raise RuntimeError("no values")

    (weight, *_) = model.constants()
    edit.replace_uses(
        model, weight, edit.add_constant(model, "w", "new", weights.ComputedValues((64, 16), np.dtype(F), fail))
    )
    before = contents(tmp_path)
    with pytest.raises(RuntimeError, match="no values"), save.draft(model, tmp_path / "new" / "o.onnx"):
        pass
    assert contents(tmp_path) == before


def test_a_published_draft_replaces_what_was_there(model: Model, tmp_path: Path) -> None:
    out = tmp_path / "o.onnx"
    for name in ("o.onnx", "o.onnx.data"):
        (tmp_path / name).write_bytes(b"old")
    with save.draft(model, out) as written:
        assert out.read_bytes() == b"old"
        assert written.publish() == out
    same_outputs(tmp_path / "in" / "m.onnx", out)
    assert written.size_bytes == sum((tmp_path / name).stat().st_size for name in ("o.onnx", "o.onnx.data"))
    assert {p for p in contents(tmp_path) if not p.startswith("in")} == {"o.onnx", "o.onnx.data"}


@pytest.mark.parametrize("out", ["in/m.onnx", "in/../in/m.onnx", "linked.onnx", "in/w.bin", "in"])
def test_the_input_is_never_written_over(out: str, model: Model, tmp_path: Path) -> None:
    (tmp_path / "linked.onnx").symlink_to(tmp_path / "in" / "m.onnx")
    before = contents(tmp_path)
    with pytest.raises(UsageError):
        Made(model).save(tmp_path / out)
    assert contents(tmp_path) == before


def test_the_weights_of_the_input_are_never_written_over(tmp_path: Path) -> None:
    """o.onnx would put its weights where m.onnx has its own."""
    onnx.save(
        network(), str(tmp_path / "m.onnx"), save_as_external_data=True, location="o.onnx.data", size_threshold=45
    )
    model = load_model(tmp_path / "m.onnx")
    with pytest.raises(UsageError, match=r"o\.onnx\.data"):
        Made(model).save(tmp_path / "o.onnx")


@pytest.mark.parametrize("out", ["file/o.onnx", "a" * 300 + ".onnx"])
def test_places_that_cannot_be_written_are_a_usage_error(out: str, model: Model, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    before = contents(tmp_path)
    with pytest.raises(UsageError, match="cannot write"), save.draft(model, tmp_path / out):
        pass
    assert contents(tmp_path) == before
