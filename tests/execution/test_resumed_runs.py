"""Runs that begin at a quantized tensor give the outputs of the whole model with that tensor quantized."""

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from handmade import HANDMADE, Case
from numpy.typing import NDArray
from planned_models import planned

from onnxshot.execution import resumed_runs
from onnxshot.execution.resumed_runs import ResumedRuns
from onnxshot.graph import Model
from onnxshot.graph.copies import copy_of
from onnxshot.graph.lean_model import LeanModel
from onnxshot.passes.insert_qdq import InsertQdq
from onnxshot.planning.plan import Plan

NAMES = ["mbconv_block", "resnet_block", "concat_of_different_ranges", "two_outputs", "yolo_head"]


def with_pairs(model: Model, plan: Plan, groups: set[str]) -> Model:
    """The model with the tensors of these groups quantized, for the nodes with weights."""
    copy = copy_of(model)
    nodes = tuple(node for node in plan.nodes if node.has_weight)
    tensors = {name: one for name, one in plan.tensors.items() if one.group in groups}
    InsertQdq(replace(plan, nodes=nodes, weights={}, tensors=tensors)).run(copy)
    return copy


def outputs(proto: onnx.ModelProto, feed: Any) -> dict[str, NDArray[Any]]:
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    given = {i.name: feed[i.name] for i in session.get_inputs()}
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, given), strict=True))


def resumed(model: Model, plan: Plan) -> ResumedRuns:
    groups: dict[str, list[str]] = {}
    for name, one in plan.tensors.items():
        groups.setdefault(one.group, []).append(name)
    return ResumedRuns(LeanModel.of(with_pairs(model, plan, set(groups))), groups, {})


@pytest.mark.parametrize("sections", [1, 3, 8])
@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_those_of_the_whole_model(name: str, sections: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resumed_runs, "_SECTIONS", sections)
    case: Case = HANDMADE[name]()
    model, plan = planned(case, calibrate=True)
    runs, given = resumed(model, plan), case.feeds[:3]
    assert plan.params
    runs.prepare(given, plan.params, 2)
    for group, params in plan.params.items():
        coarse = replace(params, scale=np.asarray(params.scale * 3, np.float32))
        changed = replace(plan, params={**plan.params, group: coarse})
        alone = with_pairs(model, changed, {group}).to_proto()
        for sample, feed in enumerate(given):
            wanted, got = outputs(alone, feed), runs.run(group, coarse, sample)
            assert got.keys() == wanted.keys()
            for output, values in wanted.items():
                np.testing.assert_allclose(got[output], values, rtol=1e-3, atol=1e-3 * np.abs(values).max())
        runs.release(group)
    float_outputs = outputs(model.to_proto(), given[0])
    exact = [
        all(np.allclose(runs.run(group, params, 0)[o], float_outputs[o], atol=1e-7) for o in float_outputs)
        for group, params in plan.params.items()
    ]
    assert not all(exact), "quantizing a tensor shows in the outputs"


def test_a_quantized_tensor_that_nothing_reads_changes_no_output() -> None:
    case: Case = HANDMADE["resnet_block"]()
    model, plan = planned(case, calibrate=True)
    groups = {name: [name] for name in plan.tensors}
    proto = with_pairs(model, plan, {one.group for one in plan.tensors.values()}).to_proto()
    quantize = next(n for n in proto.graph.node if n.op_type == "QuantizeLinear" and n.input[0] in groups)
    unread = {n.output[0] for n in proto.graph.node if n.input[0] == quantize.output[0]}
    for node in proto.graph.node:
        for slot, name in enumerate(node.input):
            if name in unread:
                node.input[slot] = quantize.input[0]
    runs, group = ResumedRuns(LeanModel.of(proto), groups, {}), quantize.input[0]
    runs.prepare(case.feeds[:1], [group], 1)
    got = runs.run(group, plan.params[plan.tensors[group].group], 0)
    for name, values in outputs(model.to_proto(), case.feeds[0]).items():
        np.testing.assert_allclose(got[name], values, rtol=1e-5, atol=1e-6)


def test_only_what_stands_behind_the_tensor_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    case: Case = HANDMADE["mbconv_block"]()
    model, plan = planned(case, calibrate=True)
    runs, ran = resumed(model, plan), list[int]()
    runs.prepare(case.feeds[:1], plan.params, 1)
    section = ResumedRuns._section

    def counted(self: ResumedRuns, number: int) -> Any:
        ran.append(number)
        return section(self, number)

    monkeypatch.setattr(ResumedRuns, "_section", counted)
    last = max(plan.params, key=lambda group: runs._tail(group).next_section)
    first = min(plan.params, key=lambda group: runs._tail(group).next_section)
    sections = []
    for group in (first, last):
        ran.clear()
        runs.run(group, plan.params[group], 0)
        sections.append(list(ran))
    assert len(sections[0]) > len(sections[1])
