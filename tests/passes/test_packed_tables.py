import numpy as np
import pytest
from handmade import Case
from handmade.core import model, weight
from planned_models import quantized, run

from onnxshot.graph.load import load_model
from onnxshot.passes.integer_ops_to_float import IntegerOpsToFloat


def table(columns: int, rank_is_known: bool = True) -> Case:
    text = f"g (int64[2, T] ids) => (float[2, T, {columns}] y) {{ y = Gather(table, ids) }}"
    ids = np.random.default_rng(3).integers(-500, 500, (2, 4))
    return Case(model(text, {"table": weight(500, columns)}), [{"ids": ids}])


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("columns", [96, 100])
def test_a_packed_table_is_read_as_the_floats_that_it_stands_for(columns: int, bits: int, asymmetric: bool) -> None:
    case = table(columns)
    _, made = quantized(case, mode="weights", bits=bits, block=32, asymmetric=asymmetric)
    restored = load_model(made)
    pass_ = IntegerOpsToFloat()
    pass_.run(restored)
    back = restored.to_proto()
    assert [n.op_type for n in back.graph.node] == ["Gather"]
    assert list(pass_.precision.values()) == [f"weights {bits} bits"]
    np.testing.assert_array_equal(run(back, case.feeds[0])[0], run(made, case.feeds[0])[0])


def test_a_tied_table_is_read_by_both_of_its_readers() -> None:
    text = """g (int64[2, T] ids) => (float[2, T, 500] scores) {
        x = Gather(table, ids)
        turned = Transpose<perm = [1, 0]>(table)
        scores = MatMul(x, turned)
    }"""
    case = Case(model(text, {"table": weight(500, 96)}), [{"ids": np.arange(8).reshape(2, 4)}])
    _, made = quantized(case, mode="weights", bits=4, asymmetric=True)
    restored = load_model(made)
    pass_ = IntegerOpsToFloat()
    pass_.run(restored)
    assert sorted(n.op for n in restored.graph.nodes) == ["Gather", "MatMul"]
    assert list(pass_.precision.values()) == ["weights 4 bits"] * 2


def test_other_gathers_of_bytes_stay() -> None:
    text = "g (int64[T] ids) => (uint8[T, 2, 3] y) { y = Gather(bytes, ids) }"
    proto = model(text, {"bytes": np.arange(60, dtype=np.uint8).reshape(10, 2, 3)})
    restored = load_model(proto)
    assert IntegerOpsToFloat().run(restored).edits == 0
