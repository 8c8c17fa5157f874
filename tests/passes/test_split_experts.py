"""Products by stacks of matrices in blocks: one product by each matrix where the runtime takes one."""

from typing import Any

import numpy as np
import onnx
import pytest
from handmade import Case
from handmade.core import feeds, model, weight
from onnx.reference import ReferenceEvaluator
from planned_models import initializers, nodes_of, quantized, run, sqnr

STACK = {"w": weight(3, 64, 24)}
INPUTS = {"one for each": (3, 5, 64), "one for all": (1, 5, 64), "a matrix": (5, 64), "a batch": (2, 3, 5, 64)}


def product(shape: tuple[int, ...], first: str | None = None) -> Case:
    sizes = [str(n) for n in shape]
    sizes[0 if len(shape) == 3 else -2] = first or sizes[0 if len(shape) == 3 else -2]
    out = ["2", "3", "5", "24"] if len(shape) == 4 else ["3", "5", "24"]
    text = f"g (float[{', '.join(sizes)}] x) => (float[{', '.join(out)}] y) {{ y = MatMul(x, w) }}"
    return Case(model(text, STACK), feeds(3, x=shape))


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize(
    "options", [{}, {"format": "qdq"}, {"target": "openvino"}, {"asymmetric": True}, {"bits": 8}], ids=str
)
def test_each_matrix_is_a_product_of_its_own(name: str, options: dict[str, Any]) -> None:
    case = product(INPUTS[name])
    _, made = quantized(case, **{"mode": "weights", "bits": 4, "block": 32, **options})
    onnx.checker.check_model(made)
    products = [n for n in made.graph.node if n.op_type in ("MatMul", "MatMulNBits")]
    assert len(products) == 3
    assert {n.op_type for n in products} == {"MatMul" if "format" in options or "target" in options else "MatMulNBits"}
    floats = [v for v in initializers(made).values() if v.dtype == np.float32 and v.size > 48]
    assert not floats, "nothing but scales is float"
    assert sqnr(case, made) > (33 if options.get("bits") == 8 else 12)
    (got,) = run(made, case.feeds[0], optimize=False)
    if len(nodes_of(made, "MatMul")) == 3:
        np.testing.assert_allclose(got, ReferenceEvaluator(made).run(None, case.feeds[0])[0], rtol=1e-4, atol=1e-4)


def test_tensorrt_and_portable_files_keep_the_stack() -> None:
    for target in ("tensorrt", "portable"):
        case = product((3, 5, 64))
        _, made = quantized(case, target=target, mode="weights", bits=4, block=32)
        assert len(nodes_of(made, "MatMul")) == 1
        assert sqnr(case, made) > 11


@pytest.mark.parametrize("target", ["ort", "openvino"])
def test_an_unknown_number_of_matrices_is_not_split(target: str) -> None:
    case = product((3, 5, 64), first="E")
    _, made = quantized(case, target=target, mode="weights", bits=4, block=32)
    assert len(nodes_of(made, "MatMul")) == 1
    assert sqnr(case, made) > 11
