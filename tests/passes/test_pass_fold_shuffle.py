import numpy as np
import pytest
from handmade.core import feeds, model
from onnx import ModelProto
from pass_checks import ops, rewritten

from onnxshot.graph import weights
from onnxshot.passes.fold_shuffle import FoldShuffle

C, H, W = 6, 4, 5


def proto(body: str, outs: str, opset: int = 13, batch: str = "1", **shapes: list[int]) -> ModelProto:
    constants = {k: np.array(v, np.int64) for k, v in shapes.items()}
    text = f"g (float[{batch}, {C}, {H}, {W}] x) => ({outs}) {{ {body} }}"
    return model(text, constants, opset=opset)


def channels(after) -> list[list[int]]:
    return [weights.read(n.inputs[1]).tolist() for n in after.graph.nodes if n.op == "Gather"]


def test_shuffle_of_two_groups_is_one_gather() -> None:
    body = "a = Reshape(x, s) b = Transpose<perm = [0, 2, 1, 3, 4]>(a) y = Reshape(b, t)"
    p = proto(body, f"float[1, {C}, {H}, {W}] y", s=[1, 2, C // 2, H, W], t=[1, C, H, W])
    after, change = rewritten(p, FoldShuffle(), *feeds(1, x=(1, C, H, W)))
    assert change.edits == 1
    assert ops(after) == {"Gather": 1}
    assert channels(after) == [[0, 3, 1, 4, 2, 5]]


def test_shuffle_and_split_become_one_gather_per_half() -> None:
    """ShuffleNetV2 as exporters write it: reshape, transpose, reshape, then index 0 and 1."""
    body = (
        "a = Reshape(x, s) b = Transpose<perm = [1, 0, 2]>(a) c = Reshape(b, t)"
        " y = Gather<axis = 0>(c, first) z = Gather<axis = 0>(c, second)"
    )
    outs = f"float[1, {C // 2}, {H}, {W}] y, float[1, {C // 2}, {H}, {W}] z"
    p = proto(body, outs, s=[C // 2, 2, H * W], t=[2, -1, C // 2, H, W], first=0, second=1)  # type: ignore[arg-type]
    after, change = rewritten(p, FoldShuffle(), *feeds(1, x=(1, C, H, W)))
    assert change.edits == 2
    assert ops(after) == {"Gather": 2}
    assert sorted(channels(after)) == [[0, 2, 4], [1, 3, 5]]


def test_dynamic_batch_with_computed_shapes() -> None:
    body = "a = Reshape(x, s) b = Transpose<perm = [0, 2, 1, 3, 4]>(a) y = Reshape(b, t)"
    p = proto(body, f"float[n, {C}, {H}, {W}] y", batch="n", s=[0, 3, 2, H, W], t=[-1, C, H, W])
    after, change = rewritten(p, FoldShuffle(), *feeds(1, x=(3, C, H, W)))
    assert change.edits == 1
    assert channels(after) == [[0, 2, 4, 1, 3, 5]]


@pytest.mark.parametrize(
    ("body", "shapes"),
    [
        # pixels move, not channels
        ("a = Reshape(x, s) b = Transpose<perm = [0, 1, 3, 2]>(a) y = Reshape(b, s)", {"s": [1, C, H, W]}),
        # an attention head split is not a shuffle
        ("a = Reshape(x, s) y = Transpose<perm = [0, 2, 1, 3]>(a)", {"s": [1, C * H, 1, W]}),
        # the middle is read by something else
        (
            "a = Reshape(x, s) b = Transpose<perm = [0, 2, 1, 3, 4]>(a) c = Reshape(b, t) d = Relu(a) e = Reshape(d, t)"
            " y = Add(c, e)",
            {"s": [1, 2, C // 2, H, W], "t": [1, C, H, W]},
        ),
        # nothing moves
        ("a = Reshape(x, s) y = Reshape(a, t)", {"s": [1, 2, C // 2, H, W], "t": [1, C, H, W]}),
    ],
)
def test_other_chains_stay(body: str, shapes: dict[str, list[int]]) -> None:
    p = proto(body, "float[a, b, c, d] y", **shapes)
    before = len(p.graph.node)
    after, change = rewritten(p, FoldShuffle(), *feeds(1, x=(1, C, H, W)))
    assert change.edits == 0
    assert len(after.graph.nodes) == before


def by_size(groups: int, c: int, *, cast: bool = False, split: str = "") -> str:
    """A shuffle as TorchScript writes `view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, -1, h, w)`."""
    sizes = "".join(f" s{i} = Shape(x) d{i} = Gather<axis = 0>(s{i}, i{i})" for i in range(4))
    half = " q = Div(d1, groups)"
    if cast:
        half = " fl = Cast<to = 1>(d1) g1 = Cast<to = 1>(groups) qf = Div(fl, g1) fq = Floor(qf) q = Cast<to = 7>(fq)"
    many = "".join(f" u{i} = Unsqueeze(d{i}, at)" for i in range(4))
    many += " uq = Unsqueeze(q, at) ug = Unsqueeze(groups, at)"
    return (
        f"{sizes}{half}{many} view = Concat<axis = 0>(u0, ug, uq, u2, u3) a = Reshape(x, view)"
        " b = Transpose<perm = [0, 2, 1, 3, 4]>(a) flat = Concat<axis = 0>(u0, u1, u2, u3) c = Reshape(b, flat)" + split
    )


SIZES = {f"i{i}": i for i in range(4)} | {"at": [0], "ax": [1], "zero": [0], "three": [3], "end": [2**62]}
HALVES = (
    " y = Slice(c, zero, three, ax) z = Slice(c, three, end, ax)",
    " y, z = Split<axis = 1>(c)",
    " k = Shape(c) l = Gather<axis = 0>(k, ax) m = Div(l, two) y = Slice(c, zero, m, ax) z = Slice(c, m, l, ax)",
)


@pytest.mark.parametrize("cast", [False, True])
@pytest.mark.parametrize("groups", [2, 3])
def test_shuffle_whose_shapes_are_computed(groups: int, cast: bool) -> None:
    body = by_size(groups, C, cast=cast, split=" y = Identity(c)")
    p = free(body, "float[n, 6, h, w] y", groups=groups)
    after, change = rewritten(p, FoldShuffle(), *feeds(1, x=(3, C, 2, 5)), *feeds(1, x=(1, C, 4, 4)))
    assert change.edits == 1
    assert ops(after) == {"Gather": 1, "Identity": 1}
    assert channels(after) == [np.arange(C).reshape(groups, -1).T.ravel().tolist()]


@pytest.mark.parametrize("split", HALVES)
def test_parts_of_a_shuffle_are_picked_at_once(split: str) -> None:
    p = free(by_size(2, C, split=split), "float[n, 3, h, w] y, float[n, 3, h, w] z", groups=2)
    after, change = rewritten(p, FoldShuffle(), *feeds(1, x=(3, C, 2, 5)))
    assert change.edits == 2
    assert "Transpose" not in ops(after)
    assert sorted(c for c in channels(after) if isinstance(c, list)) == [[0, 3, 1], [4, 2, 5]]


def test_a_chain_that_is_a_shuffle_for_one_batch_size_only_stays() -> None:
    """With a batch of two this reorders channels; with a batch of three it mixes images."""
    body = "a = Reshape(x, s) b = Transpose<perm = [0, 2, 1, 3]>(a) y = Reshape(b, t)"
    p = proto(body, f"float[n, {C}, {H}, {W}] y", batch="n", s=[2, 2, C // 2, H * W], t=[2, C, H, W])
    assert rewritten(p, FoldShuffle(), *feeds(1, x=(2, C, H, W)))[1].edits == 0


def free(body: str, outs: str, groups: int) -> ModelProto:
    constants = {k: np.array(v, np.int64) for k, v in (SIZES | {"groups": groups, "two": 2}).items()}
    return model(f"g (float[n, {C}, h, w] x) => ({outs}) {{ {body} }}", constants, opset=13)
