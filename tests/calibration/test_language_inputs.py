"""Which input takes what, for the names that exporters give; and feeds of merged decoders, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from onnxshot.calibration.checks import InputSpec
from onnxshot.calibration.language_inputs import language_inputs, takes_text
from onnxshot.errors import CalibrationError

I64, F32, F16, BOOL = (np.dtype(t) for t in (np.int64, np.float32, np.float16, np.bool_))


def spec(name: str, *dims: int | str, dtype: np.dtype = I64) -> InputSpec:
    return InputSpec(name, dtype, dims)


def test_an_encoder_of_torch_with_odd_names() -> None:
    specs = [spec(name, "b", "s") for name in ("input.ids", "input_mask", "segment_ids")]
    found = language_inputs(specs, ["y"])
    assert (found.ids.name, found.masks[0].name, found.types[0].name) == ("input.ids", "input_mask", "segment_ids")
    alone = language_inputs([spec("x", "b", "s")], ["y"])
    assert alone.ids.name == "x"


def test_masks_of_floats_are_floats() -> None:
    found = language_inputs([spec("input_ids", 1, 4), spec("attention_mask", 1, 4, dtype=F32)], ["y"])
    feed = found.feed([7, 8], pad=1)
    assert feed["input_ids"].tolist() == [[7, 8, 1, 1]]
    assert feed["attention_mask"].tolist() == [[1, 1, 0, 0]] and feed["attention_mask"].dtype == F32


@pytest.mark.parametrize(
    ("past", "present"),
    [
        ("past_key_values.3.key", "present.3.key"),
        ("past_key_values.3.value", "present_key_values.3.value"),
        ("past.3.key", "present.3.key"),
        ("past_key_self_3", "present_key_self_3"),
        ("past_3", "present_3"),
        ("past_key_values", "present_key_values"),
    ],
)
def test_pasts_go_with_presents_of_their_name(past: str, present: str) -> None:
    specs = [spec("input_ids", "b", "s"), spec(past, "b", 2, "past", 8, dtype=F16)]
    found = language_inputs(specs, ["logits", "present.9.key", present])
    (only,) = found.pasts
    assert (only.present, only.axis, only.shape) == (present, 2, (1, 2, 0, 8))
    assert found.grows and found.feed([1])[past].dtype == F16


def test_pasts_without_names_go_by_their_place() -> None:
    specs = [spec("input_ids", "b", "s"), *(spec(f"past{i}x", "b", 2, "past", 8, dtype=F32) for i in range(2))]
    assert [p.present for p in language_inputs(specs, ["logits", "present_a", "present_b"]).pasts] == [
        "present_a", "present_b",
    ]  # fmt: skip


def test_stacked_pasts_of_gpt2_have_a_batch_behind_the_stack() -> None:
    specs = [spec("input_ids", "batch", "s"), spec("past_0", 2, "batch", 12, "past_sequence", 64, dtype=F32)]
    (past,) = language_inputs(specs, ["logits", "present_0"]).pasts
    assert (past.axis, past.shape) == (3, (2, 1, 12, 0, 64))


def test_sizes_that_the_graph_leaves_open_come_from_the_configuration() -> None:
    specs = [spec("input_ids", "b", "s"), spec("past.0.key", "s1", "s2", "s3", "s4", dtype=F32)]
    (past,) = language_inputs(specs, ["present.0.key"], {"heads": 3, "head": 64}).pasts
    assert past.shape == (1, 3, 0, 64)
    with pytest.raises(CalibrationError, match="axis 1 nothing tells"):
        language_inputs(specs, ["present.0.key"])


def test_states_of_a_fixed_size_begin_as_zeros() -> None:
    specs = [spec("input_ids", "b", "s"), spec("past_conv.0", "b", 8, 3, dtype=F32)]
    found = language_inputs(specs, ["logits", "present_conv.0"])
    assert found.feed([1, 2])["past_conv.0"].shape == (1, 8, 3)
    carried = found.pasts_of({"present_conv.0": np.ones((1, 8, 3), np.float32)})
    assert carried["past_conv.0"].min() == 1


def test_a_room_of_a_fixed_size_is_masked_where_nothing_was_seen() -> None:
    specs = [
        spec("input_ids", 1, 1), spec("attention_mask", 1, 5), spec("position_ids", 1, 1),
        spec("past.0.key", 1, 1, 4, 2, dtype=F32),
    ]  # fmt: skip
    found = language_inputs(specs, ["logits", "present.0.key"])
    assert found.feed([9])["attention_mask"].tolist() == [[0, 0, 0, 0, 1]]
    present = np.arange(10, dtype=np.float32).reshape(1, 1, 5, 2)
    pasts = found.pasts_of({"present.0.key": present})
    np.testing.assert_array_equal(pasts["past.0.key"], present[:, :, 1:])
    step = found.feed([9], seen=1, pasts=pasts)
    assert step["attention_mask"].tolist() == [[0, 0, 0, 1, 1]] and step["position_ids"].tolist() == [[1]]
    assert found.feed([9], seen=7, pasts=pasts)["attention_mask"].tolist() == [[1] * 5]


def merged() -> tuple[list[InputSpec], list[str]]:
    """The inputs and outputs of optimum's decoder_model_merged.onnx of an encoder-decoder model, one layer."""
    dims = ("batch_size", 2, "past_decoder_sequence_length", 4)
    cross = ("batch_size", 2, "encoder_sequence_length_out", 4)
    specs = [
        spec("encoder_attention_mask", "batch_size", "encoder_sequence_length"),
        spec("input_ids", "batch_size", "decoder_sequence_length"),
        spec("encoder_hidden_states", "batch_size", "encoder_sequence_length", 8, dtype=F32),
        *(spec(f"past_key_values.0.decoder.{part}", *dims, dtype=F32) for part in ("key", "value")),
        *(spec(f"past_key_values.0.encoder.{part}", *cross, dtype=F32) for part in ("key", "value")),
        spec("use_cache_branch", 1, dtype=BOOL),
    ]
    presents = [f"present.0.{side}.{part}" for side in ("decoder", "encoder") for part in ("key", "value")]
    return specs, ["logits", *presents]


def test_a_merged_decoder_keeps_the_keys_of_its_encoder_through_steps() -> None:
    specs, outputs = merged()
    found = language_inputs(specs, outputs)
    assert found.needs_encoder and found.grows and [p.cross for p in found.pasts] == [False, False, True, True]
    hidden = {"encoder_hidden_states": np.ones((1, 3, 8), np.float32)}
    prompt = found.feed([0, 5], crosses=hidden, source_mask=[1, 1, 1])
    assert prompt["use_cache_branch"].tolist() == [False]
    assert prompt["past_key_values.0.encoder.key"].shape == (1, 2, 0, 4)
    assert prompt["encoder_attention_mask"].tolist() == [[1, 1, 1]]
    made = {name: np.full((1, 2, 3 if "encoder" in name else 2, 4), i, np.float32) for i, name in enumerate(outputs)}
    pasts = found.pasts_of(made)
    step = found.feed([6], seen=2, pasts=pasts, crosses=hidden, source_mask=[1, 1, 1])
    assert step["use_cache_branch"].tolist() == [True]
    assert step["past_key_values.0.encoder.value"].shape == (1, 2, 3, 4)
    after = {**made, "present.0.encoder.key": np.zeros((0, 2, 1, 4), np.float32)}  # the branch of steps gives none
    kept = found.pasts_of(after, pasts)
    np.testing.assert_array_equal(kept["past_key_values.0.encoder.key"], pasts["past_key_values.0.encoder.key"])


def test_what_a_text_does_not_tell_is_an_error_that_names_the_input() -> None:
    with pytest.raises(CalibrationError, match=r"'weights' expects float32 \[b,3\]"):
        language_inputs([spec("input_ids", "b", "s"), spec("weights", "b", 3, dtype=F32)], ["y"])
    with pytest.raises(CalibrationError, match="takes 4 texts at a time"):
        language_inputs([spec("input_ids", 4, "s")], ["y"])
    assert not takes_text([spec("x", 1, 3, 8, 8, dtype=F32)])
