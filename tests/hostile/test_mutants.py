"""Broken, odd and absurd models: never an error that is not the user's, never a hang, nothing silently different.

Each mutant is made of a real model by one of some hundred mutations (tests/helpers/fuzzing), the same in every
process. It is inspected, normalized, quantized and pruned in a process of 4 GiB, each step in a minute of CPU. What
ONNX Runtime makes of the mutant is the truth that results are held against.
"""

import os
from pathlib import Path

import pytest
from fuzzing import attributes, inner, values, wiring  # noqa: F401  importing fills MUTATIONS
from fuzzing.core import MUTATIONS
from fuzzing.run import table, tried
from fuzzing.seeds import numbered, seeds

_SAMPLE = [
    ("gemm_trans_b_1", "node_bypassed"), ("if_captures_weights", "input_rewired"),
    ("constant_folding", "input_from_behind"), ("conv_behind_constant", "graph_output_missing"),
    ("lstm", "graph_output_is_weight"), ("two_outputs", "batch_of_nothing"), ("two_outputs", "an_int"),
    ("constant_folding", "graph_input_of_other_type"), ("already_qoperator", "a_list_of_zeros"),
    ("yolo_head", "group"), ("opset_12", "opset_of_other_version"), ("batchnorm_after_gemm", "batchnorm_variance"),
    ("gemm_trans_b_1", "a_few_values"), ("two_outputs", "all_values"), ("if_captures_weights", "of_other_type"),
    ("gemm_trans_b_1", "of_strings"), ("batchnorm_after_gemm", "empty"), ("gemm_trans_b_1", "a_scalar"),
    ("already_qoperator", "another_width"), ("already_qoperator", "dims_wrong"), ("two_outputs", "raw_data_wrong"),
    ("opset_12", "outside_wrong_place"), ("gemm_trans_b_1", "sparse"), ("matmul_behind_cast", "quantized_on_top"),
    ("gemm_trans_b_1", "function_of_itself"), ("loop_body", "loop"), ("gemm_trans_b_1", "giant_fill"),
    ("matmul_behind_cast", "giant_outer_product"), ("duplicate_node_names", "pads_uneven"),
    ("no_weights", "graph_output_twice"), ("microsoft_first", "strides"), ("gru", "recurrent"),
    ("attention_block", "permutation"), ("gemm_trans_b_1", "overridable"), ("already_qdq", "zero_point_or_scale"),
    ("conv_behind_cast", "cast_to"), ("gemm_trans_b_1", "names_with_odd_characters"), ("nested_if", "branch_shadows"),
    ("opset_21", "opset_twice"), ("half_precision_model", "scaled"),
]  # fmt: skip


def test_there_are_a_hundred_mutations() -> None:
    assert len(MUTATIONS) > 100
    assert {mutation for _, mutation in _SAMPLE} <= set(MUTATIONS)
    assert len(_SAMPLE) == 40


def test_a_sample_of_mutants() -> None:
    found = list(tried((seed, mutation, number) for number, (seed, mutation) in enumerate(_SAMPLE)))
    assert len(found) == len(_SAMPLE)
    assert not any(one.faults for one in found), table(found)
    assert any(one.steps.get("emit", ("", ""))[0] == "done" for one in found)
    assert any(one.steps.get("emit", ("", ""))[0] == "refused" for one in found)


@pytest.mark.slow
def test_six_hundred_mutants_of_real_models() -> None:
    """ONNXSHOT_MUTANTS: a folder of .onnx files, samples in calib/*.npz beside them, to make mutants of as well."""
    found = list(tried(numbered(660, list(seeds()), list(MUTATIONS))))
    if folder := os.environ.get("ONNXSHOT_MUTANTS"):
        found += tried(numbered(200, list(seeds(Path(folder))), list(MUTATIONS)), Path(folder))
    print(table(found))
    assert not any(one.faults for one in found), table(found)
    assert sum(one.steps.get("runtime", ("", ""))[0] == "runs" for one in found) > 150
