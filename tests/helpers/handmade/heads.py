"""Detection heads: boxes in pixels next to scores in 0..1, and what picks from them."""

import numpy as np

from handmade.core import Case, Feed, case, feeds, model, vector, weight

# Two conv branches, decoded to boxes [1, 4, 400] in 0..640 pixels and scores [1, 10, 400] in 0..1.
DECODE = """
        box1 = Conv<pads = [1, 1, 1, 1]>(x, w_box1, b_box1)
        box_r = Relu(box1)
        box2 = Conv(box_r, w_box2, b_box2)
        cls1 = Conv<pads = [1, 1, 1, 1]>(x, w_cls1, b_cls1)
        cls_r = Relu(cls1)
        cls2 = Conv(cls_r, w_cls2, b_cls2)
        box_flat = Reshape(box2, box_shape)
        cls_flat = Reshape(cls2, cls_shape)
        box_s = Sigmoid(box_flat)
        xy, wh = Split<axis = 1>(box_s, halves)
        xy_grid = Add(xy, grid)
        xy_px = Mul(xy_grid, stride)
        wh_sq = Mul(wh, wh)
        wh_px = Mul(wh_sq, largest)
        boxes = Concat<axis = 1>(xy_px, wh_px)
        scores = Sigmoid(cls_flat)
"""


def head_constants() -> Feed:
    """Constants of DECODE: a 20 × 20 grid of 32-pixel cells."""
    y, x = np.divmod(np.arange(400), 20)
    return {
        "w_box1": weight(16, 8, 3, 3),
        "b_box1": vector(16),
        "w_box2": weight(4, 16, 1, 1),
        "b_box2": vector(4),
        "w_cls1": weight(16, 8, 3, 3, seed=1),
        "b_cls1": vector(16, seed=1),
        "w_cls2": weight(10, 16, 1, 1),
        "b_cls2": vector(10) - np.float32(4),  # most cells hold nothing
        "box_shape": np.array([1, 4, 400], np.int64),
        "cls_shape": np.array([1, 10, 400], np.int64),
        "halves": np.array([2, 2], np.int64),
        "grid": np.stack([x, y])[None].astype(np.float32),
        "stride": np.array(32, np.float32),
        "largest": np.array(320, np.float32),
    }


@case
def yolo_head() -> Case:
    """One output [1, 14, 400]: Concat(boxes 0..640, scores 0..1). One int8 scale over both kills the scores."""
    text = f"""g (float[1, 8, 20, 20] x) => (float[1, 14, 400] y) {{
        {DECODE}
        y = Concat<axis = 1>(boxes, scores)
    }}"""
    return Case(model(text, head_constants()), feeds(x=(1, 8, 20, 20)))


@case
def yolo_head_transposed() -> Case:
    """The same head as [1, 400, 14], joined on the last axis after transposes."""
    text = f"""g (float[1, 8, 20, 20] x) => (float[1, 400, 14] y) {{
        {DECODE}
        boxes_last = Transpose<perm = [0, 2, 1]>(boxes)
        scores_last = Transpose<perm = [0, 2, 1]>(scores)
        y = Concat<axis = -1>(boxes_last, scores_last)
    }}"""
    return Case(model(text, head_constants()), feeds(x=(1, 8, 20, 20)))


@case
def nms_tail() -> Case:
    """The head with NonMaxSuppression: indices int64 [found, 3], whose number depends on the data."""
    text = f"""g (float[1, 8, 20, 20] x) => (int64[found, 3] picked) {{
        {DECODE}
        boxes_last = Transpose<perm = [0, 2, 1]>(boxes)
        picked = NonMaxSuppression<center_point_box = 1>(boxes_last, scores, most, overlap, least)
    }}"""
    limits = {"most": np.array(5, np.int64), "overlap": np.array(0.5, np.float32), "least": np.array(0.05, np.float32)}
    return Case(model(text, head_constants() | limits), feeds(x=(1, 8, 20, 20)))


@case
def argmax_tail() -> Case:
    """A segmentation head that ends in class indices."""
    text = """g (float[batch, 4, 8, 8] x) => (int64[batch, 8, 8] y) {
        c = Conv<pads = [1, 1, 1, 1]>(x, w, b)
        y = ArgMax<axis = 1, keepdims = 0>(c)
    }"""
    return Case(model(text, {"w": weight(6, 4, 3, 3), "b": vector(6)}), feeds(x=(2, 4, 8, 8)))


@case
def topk_tail() -> Case:
    """The three best classes: probabilities and int64 indices."""
    text = """g (float[batch, 16] x) => (float[batch, 3] best, int64[batch, 3] which) {
        h = Gemm<transB = 1>(x, w, b)
        p = Softmax<axis = -1>(h)
        best, which = TopK<axis = -1>(p, three)
    }"""
    weights = {"w": weight(10, 16), "b": vector(10), "three": np.array([3], np.int64)}
    return Case(model(text, weights), feeds(x=(4, 16)))
