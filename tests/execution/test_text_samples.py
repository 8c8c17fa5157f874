"""Samples that are made of texts, against ids that are counted by hand and pasts that the model itself makes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto

pytest.importorskip("tokenizers")
from texts import BERT, PLAIN, decoder, encoder, ids_of, info, write_tokenizer
from tones import write_wave

from onnxshot.calibration.readers import Dataset
from onnxshot.calibration.text_preset import TextPreset
from onnxshot.errors import CalibrationError, OnnxshotError, UsageError
from onnxshot.execution.statistics_source import open_calib
from onnxshot.graph.load import load_model
from onnxshot.settings import Settings

LETTERS = "a b c d e f g h i j k l m n o p q r s t u v w x y z"


def opened(model: Path, calib: Any, preset: TextPreset | None = None, samples: int | str = "all") -> Dataset:
    return open_calib(calib, load_model(model), preset, Settings(threads=1, samples=samples))


def feeds(
    model: Path, calib: Any, preset: TextPreset | None = None, samples: int | str = "all"
) -> list[dict[str, Any]]:
    with opened(model, calib, preset, samples) as data:
        return [dict(sample.feed) for sample in data]


def run(model: Path, feed: dict[str, Any]) -> dict[str, Any]:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feed), strict=True))


def test_an_encoder_gets_one_text_a_line_with_special_tokens(tmp_path: Path) -> None:
    model = encoder(tmp_path / "model.onnx")
    write_tokenizer(tmp_path)
    (tmp_path / "t.txt").write_text("a b c\n\nd zz\n")
    one, two = feeds(model, tmp_path / "t.txt")
    assert one["input_ids"].tolist() == [[2, *ids_of("a b c"), 3]]
    assert two["input_ids"].tolist() == [[2, *ids_of("d"), 1, 3]]
    assert one["attention_mask"].tolist() == [[1] * 5] and one["token_type_ids"].tolist() == [[0] * 5]
    assert one["input_ids"].dtype == np.int64
    run(model, one)


def test_long_texts_are_cut_and_keep_their_last_special_token(tmp_path: Path) -> None:
    model = encoder(tmp_path / "model.onnx")
    write_tokenizer(tmp_path)
    (feed,) = feeds(model, [LETTERS], TextPreset(length=6))
    assert feed["input_ids"].tolist() == [[2, *ids_of("a b c d"), 3]]


def test_fixed_shapes_are_filled_up_and_masked(tmp_path: Path) -> None:
    model = encoder(tmp_path / "model.onnx", length=8)
    write_tokenizer(tmp_path, pad_token="[SEP]")
    (feed,) = feeds(model, ["a b"])
    assert feed["input_ids"].tolist() == [[2, *ids_of("a b"), 3, 3, 3, 3, 3]]
    assert feed["attention_mask"].tolist() == [[1] * 4 + [0] * 4]
    assert feed["token_type_ids"].tolist() == [[0] * 8]
    with pytest.raises(CalibrationError, match="takes 8 tokens"):
        feeds(model, ["a b"], TextPreset(length=9))


@pytest.mark.parametrize("pad", [10**30, -1, True, "x", [], None, 999])
def test_odd_values_of_configurations_are_passed_over(tmp_path: Path, pad: object) -> None:
    model = encoder(tmp_path / "model.onnx", length=6)
    write_tokenizer(tmp_path, model_max_length=1e30, pad_token=7)
    (tmp_path / "config.json").write_text(json.dumps({"pad_token_id": pad, "max_position_embeddings": True}))
    (feed,) = feeds(model, ["a b"])
    assert feed["input_ids"].tolist() == [[2, *ids_of("a b"), 3, 0, 0]]
    run(model, feed)


def test_pairs_of_texts_get_two_segments(tmp_path: Path) -> None:
    model = encoder(tmp_path / "model.onnx")
    write_tokenizer(tmp_path)
    (feed,) = feeds(model, [{"sentence1": "a b", "sentence2": "c"}])
    assert feed["input_ids"].tolist() == [[2, *ids_of("a b"), 3, *ids_of("c"), 3]]
    assert feed["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1]]


def test_the_tokenizer_may_lie_one_folder_above_or_be_named(tmp_path: Path) -> None:
    model = encoder(tmp_path / "onnx" / "model.onnx")
    write_tokenizer(tmp_path)
    other = [*BERT[:4], *reversed(BERT[4:])]
    elsewhere = write_tokenizer(tmp_path / "elsewhere", other)
    (above,) = feeds(model, ["a"])
    (named,) = feeds(model, ["a"], TextPreset(elsewhere))
    (folder,) = feeds(model, ["a"], TextPreset(elsewhere.parent))
    assert above["input_ids"].tolist() == [[2, 4, 3]]
    assert named["input_ids"].tolist() == folder["input_ids"].tolist() == [[2, 29, 3]]


def test_a_stream_is_cut_into_windows_for_a_decoder(tmp_path: Path) -> None:
    model = decoder(tmp_path / "model.onnx", names=("past.{}.{}", "present.{}.{}"))
    write_tokenizer(tmp_path, PLAIN, eos_token="<eos>")
    (tmp_path / "t.txt").write_text("a b c\nd e f g\n")
    one, two = feeds(model, tmp_path / "t.txt", TextPreset(length=4))
    assert one["input_ids"].tolist() == [ids_of("a b c d", PLAIN)]
    assert two["input_ids"].tolist() == [ids_of("e f g", PLAIN)]
    assert one["attention_mask"].tolist() == [[1] * 4] and one["position_ids"].tolist() == [[0, 1, 2, 3]]
    assert one["past.0.key"].shape == (1, 1, 0, 4)
    run(model, one)


def test_texts_of_a_list_are_joined_by_the_end_token(tmp_path: Path) -> None:
    model = decoder(tmp_path / "model.onnx")
    write_tokenizer(tmp_path, PLAIN, eos_token={"content": "<eos>"})
    one, two = feeds(model, ["a b", "c d e"], TextPreset(length=3))
    assert one["input_ids"].tolist() == [[*ids_of("a b", PLAIN), 1]]
    assert two["input_ids"].tolist() == [ids_of("c d e", PLAIN)]


def test_each_window_begins_with_the_token_that_begins_a_text(tmp_path: Path) -> None:
    model = decoder(tmp_path / "model.onnx")
    write_tokenizer(tmp_path, PLAIN, bos_token="<eos>", add_bos_token=True)
    one, two = feeds(model, ["a b c d"], TextPreset(length=3))
    assert one["input_ids"].tolist() == [[1, *ids_of("a b", PLAIN)]]
    assert two["input_ids"].tolist() == [[1, *ids_of("c d", PLAIN)]]


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_steps_have_the_pasts_that_the_model_makes(tmp_path: Path, kind: int) -> None:
    model = decoder(tmp_path / "model.onnx", kind=kind, scalars=True)
    write_tokenizer(tmp_path, PLAIN)
    made = feeds(model, [LETTERS], TextPreset(length=5))
    assert [feed["input_ids"].shape[1] for feed in made] == [5, 5, 1, 5, 5]
    step, window = made[2], ids_of("k l m n o", PLAIN)
    assert step["input_ids"].tolist() == [[window[1]]]  # a prompt of a quarter of the window
    prompt = {
        "input_ids": np.array([window[:1]]), "attention_mask": np.ones((1, 1), np.int64),
        "position_ids": np.zeros((1, 1), np.int64), "num_logits_to_keep": np.array(0), "cache_position": np.array([0]),
        **{f"past_key_values.0.{part}": step[f"past_key_values.0.{part}"][:, :, :0] for part in ("key", "value")},
    }  # fmt: skip
    presents = run(model, prompt)
    for part in ("key", "value"):
        np.testing.assert_array_equal(step[f"past_key_values.0.{part}"], presents[f"present.0.{part}"])
    assert step["attention_mask"].tolist() == [[1, 1]] and step["position_ids"].tolist() == [[1]]
    assert step["cache_position"].tolist() == [1] and step["num_logits_to_keep"].shape == ()
    whole = {
        **prompt, "input_ids": np.array([window[:2]]), "attention_mask": np.ones((1, 2), np.int64),
        "position_ids": np.array([[0, 1]]), "cache_position": np.array([0, 1]),
    }  # fmt: skip
    np.testing.assert_allclose(
        run(model, step)["logits"][0, -1].astype(np.float32), run(model, whole)["logits"][0, -1].astype(np.float32),
        rtol=1e-2 if kind == TensorProto.FLOAT16 else 1e-5,
    )  # fmt: skip


def test_prompts_of_steps_differ_in_length(tmp_path: Path) -> None:
    model = decoder(tmp_path / "model.onnx")
    write_tokenizer(tmp_path, PLAIN)
    made = feeds(model, [" ".join([LETTERS] * 5)], TextPreset(length=9))
    assert [f["past_key_values.0.key"].shape[2] for f in made if f["input_ids"].shape[1] == 1] == [2, 4, 8]


def test_a_model_of_one_token_gets_steps_alone(tmp_path: Path) -> None:
    model = decoder(tmp_path / "model.onnx", now=1)
    write_tokenizer(tmp_path, PLAIN)
    step, *_ = feeds(model, [LETTERS], TextPreset(length=9))
    assert step["input_ids"].tolist() == [ids_of("c", PLAIN)]
    assert step["past_key_values.0.key"].shape == (1, 1, 2, 4)
    free = decoder(tmp_path / "free" / "model.onnx")
    whole = {
        "input_ids": np.array([ids_of("a b", PLAIN)]), "attention_mask": np.ones((1, 2), np.int64),
        "position_ids": np.array([[0, 1]]), "past_key_values.0.key": np.zeros((1, 1, 0, 4), np.float32),
        "past_key_values.0.value": np.zeros((1, 1, 0, 4), np.float32),
    }  # fmt: skip
    np.testing.assert_allclose(step["past_key_values.0.key"], run(free, whole)["present.0.key"], rtol=1e-6)


@pytest.mark.parametrize("how", [{}, {"branch": True}, {"cross": "encoder_hidden_states"}, {"now": 1}])
def test_random_samples_of_a_decoder_fit_each_other(tmp_path: Path, how: dict[str, Any]) -> None:
    model = decoder(tmp_path / "model.onnx", **how)
    one, two = feeds(model, "random", samples=2)
    assert one["past_key_values.0.key"].shape == (1, 1, 0, 4)
    assert one["attention_mask"].shape == one["input_ids"].shape
    assert run(model, one)["logits"].shape[1] == how.get("now", 16)
    assert set(np.unique([one["input_ids"], two["input_ids"]])) <= {0, 1}


def test_the_branch_of_a_merged_decoder_follows_the_pasts(tmp_path: Path) -> None:
    model = decoder(tmp_path / "model.onnx", branch=True)
    write_tokenizer(tmp_path, PLAIN)
    made = feeds(model, [LETTERS], TextPreset(length=5))
    assert [feed["use_cache_branch"].tolist() for feed in made] == [[False], [False], [True], [False], [False]]


def test_a_decoder_beside_its_encoder_gets_what_the_encoder_makes(tmp_path: Path) -> None:
    model = decoder(tmp_path / "decoder_model.onnx", rows=len(BERT), cross="encoder_hidden_states")
    beside = encoder(tmp_path / "encoder_model.onnx", width=4, types=False)
    write_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"decoder_start_token_id": 0}))
    (tmp_path / "t.tsv").write_text("a b\tc d\ne\tf g h\ni\tj\n")
    one, two, three = feeds(model, tmp_path / "t.tsv")
    source = {"input_ids": np.array([[2, *ids_of("a b"), 3]]), "attention_mask": np.ones((1, 4), np.int64)}
    np.testing.assert_array_equal(one["encoder_hidden_states"], run(beside, source)["last_hidden_state"])
    assert one["encoder_attention_mask"].tolist() == [[1] * 4]
    assert one["input_ids"].tolist() == [[0, 2, *ids_of("c d")]]  # shifted: a start token in front, no end token
    assert two["input_ids"].tolist() == [[0, 2, *ids_of("f g h")]]
    assert three["input_ids"].shape == (1, 1) and three["past_key_values.0.key"].shape[2] == 1
    run(model, three)


def test_a_decoder_of_steps_gets_its_keys_from_the_decoder_of_prompts(tmp_path: Path) -> None:
    from onnx import helper, numpy_helper, save

    node, weights = helper.make_node, np.random.default_rng(0).standard_normal((30, 4)).astype(np.float32)
    constants = {"table": weights, "one": np.array([1]), "two": np.array([2])}
    stored = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    ids, mask = info("input_ids", 7, "batch", "now"), info("encoder_attention_mask", 7, "batch", "source")
    rows = [node("Gather", ["table", "input_ids"], ["rows"]), node("Unsqueeze", ["rows", "one"], ["new"])]

    def saved(name: str, nodes: list, inputs: list, outputs: list) -> Path:
        graph = helper.make_graph(nodes, "g", inputs, outputs, stored)
        save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / name)
        return tmp_path / name

    def kept(name: str, length: str) -> Any:
        return info(name, 1, "batch", 1, length, 4)

    first = saved(
        "decoder_model.onnx",
        [
            *rows, node("Identity", ["new"], ["present.0.decoder.key"]), node("Identity", ["rows"], ["logits"]),
            node("Unsqueeze", ["encoder_hidden_states", "one"], ["present.0.encoder.key"]),
        ],
        [ids, mask, info("encoder_hidden_states", 1, "batch", "source", 4)],
        [info("logits", 1, "batch", "now", 4), kept("present.0.decoder.key", "n"), kept("present.0.encoder.key", "m")],
    )  # fmt: skip
    past, cross = kept("past_key_values.0.decoder.key", "past"), kept("past_key_values.0.encoder.key", "encoder")
    model = saved(
        "decoder_with_past_model.onnx",
        [
            *rows, node("Concat", [past.name, "new"], ["present.0.decoder.key"], axis=2),
            node("ReduceSum", [cross.name, "two"], ["heard"], keepdims=0), node("Add", ["rows", "heard"], ["logits"]),
        ],
        [ids, mask, past, cross], [info("logits", 1, "batch", "now", 4), kept("present.0.decoder.key", "n")],
    )  # fmt: skip
    encoder(tmp_path / "encoder_model.onnx", width=4, types=False)
    write_tokenizer(tmp_path)
    (feed,) = feeds(model, [("a b", "c d e f g")])
    begun = [2, *ids_of("c d e f g")]
    seen = feed["past_key_values.0.decoder.key"].shape[2]
    assert feed["input_ids"].tolist() == [begun[seen : seen + 1]] and seen > 0
    np.testing.assert_allclose(feed["past_key_values.0.decoder.key"][0, 0], weights[begun[:seen]], rtol=1e-6)
    source = {"input_ids": np.array([[2, *ids_of("a b"), 3]]), "attention_mask": np.ones((1, 4), np.int64)}
    hidden = run(tmp_path / "encoder_model.onnx", source)["last_hidden_state"]
    np.testing.assert_array_equal(feed["past_key_values.0.encoder.key"], hidden[:, None])
    run(model, feed)
    first.unlink()
    with pytest.raises(CalibrationError, match=r"steps only: there is no decoder_model.onnx"):
        opened(model, ["a b"])


def test_without_the_file_of_the_encoder_the_error_names_it(tmp_path: Path) -> None:
    model = decoder(tmp_path / "decoder_model.onnx", rows=len(BERT), cross="encoder_hidden_states")
    write_tokenizer(tmp_path)
    with pytest.raises(CalibrationError, match=r"'encoder_hidden_states' takes .* no encoder_model.onnx"):
        opened(model, ["a"])


def test_a_decoder_of_speech_gets_what_the_encoder_makes_of_the_sound(tmp_path: Path) -> None:
    from onnx import helper, numpy_helper, save

    model = decoder(tmp_path / "decoder.onnx", rows=len(BERT), cross="encoder_hidden_states")
    node = helper.make_node("Reshape", ["audio", "shape"], ["encoder_hidden_states"])
    graph = helper.make_graph(
        [node], "g", [info("audio", 1, "batch", "samples")], [info("encoder_hidden_states", 1, "batch", "steps", 4)],
        [numpy_helper.from_array(np.array([1, -1, 4]), "shape")],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    save(made, tmp_path / "encoder.onnx")
    write_tokenizer(tmp_path)
    wave = np.sin(np.arange(1600) / 20).astype(np.float32)
    write_wave(tmp_path / "a.wav", wave, bits=32, code=3)
    (tmp_path / "t.jsonl").write_text('{"audio": "a.wav", "text": "a b"}\n')
    (feed,) = feeds(model, tmp_path / "t.jsonl")
    np.testing.assert_allclose(feed["encoder_hidden_states"], wave.reshape(1, 400, 4), atol=1e-6)
    assert feed["encoder_attention_mask"].shape == (1, 400)
    assert feed["input_ids"].tolist() == [[2, *ids_of("a b")]]
    run(model, feed)
    with pytest.raises(CalibrationError, match="takes sound, and list #0 names none"):
        opened(model, ["a b"])
    (tmp_path / "t.jsonl").write_text('{"audio": "../a.wav", "text": "a b"}\n')
    with pytest.raises(CalibrationError, match="lies outside the folder"):
        opened(model, tmp_path / "t.jsonl")
    (tmp_path / "t.jsonl").write_text('{"audio": "none.wav", "text": "a b"}\n')
    with pytest.raises(CalibrationError, match=r"none.wav"):
        opened(model, tmp_path / "t.jsonl")


def test_sound_and_tokens_of_one_graph_come_from_one_record(tmp_path: Path) -> None:
    from onnx import helper, numpy_helper, save

    nodes = [
        helper.make_node("Gather", ["table", "decoder_input_ids"], ["rows"]),
        helper.make_node("ReduceSum", ["input_values", "axis"], ["sum"], keepdims=1),
        helper.make_node("Add", ["rows", "sum"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes, "g", [info("input_values", 1, "batch", "samples"), info("decoder_input_ids", 7, "batch", "now")],
        [info("logits", 1, "batch", "now", 4)],
        [
            numpy_helper.from_array(np.ones((30, 4), np.float32), "table"),
            numpy_helper.from_array(np.array([1]), "axis"),
        ],
    )  # fmt: skip
    model = tmp_path / "model.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), model)
    write_tokenizer(tmp_path)
    write_wave(tmp_path / "a.wav", np.full(160, 0.5, np.float32), bits=32, code=3)
    (feed,) = feeds(model, [{"audio": str(tmp_path / "a.wav"), "text": "a b"}])
    np.testing.assert_allclose(run(model, feed)["logits"], np.full((1, 3, 4), 81.0), rtol=1e-4)


def test_a_table_that_is_too_small_for_the_tokenizer_is_an_error(tmp_path: Path) -> None:
    model = encoder(tmp_path / "model.onnx", rows=20)
    write_tokenizer(tmp_path)
    with pytest.raises(CalibrationError, match="has 30 tokens, the model's table 20 rows"):
        opened(model, ["a"])


def test_a_model_without_a_tokenizer_says_what_is_missing(tmp_path: Path) -> None:
    model = encoder(tmp_path / "model.onnx")
    with pytest.raises(CalibrationError, match=r"no tokenizer.json lies beside") as raised:
        opened(model, ["a"])
    assert "TextPreset(tokenizer=FILE)" in raised.value.hint
    with pytest.raises(CalibrationError, match="is not there"):
        opened(model, ["a"], TextPreset(tmp_path / "none.json"))


@pytest.mark.parametrize("content", ["{", "[]", '{"version": "1.0", "model": {"type": "WordLevel"}}', "\x00"])
def test_what_is_no_tokenizer_is_an_error(tmp_path: Path, content: str) -> None:
    model = encoder(tmp_path / "model.onnx")
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CalibrationError, match="is no tokenizer"):
        opened(model, ["a"])


def test_without_the_library_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = encoder(tmp_path / "model.onnx")
    write_tokenizer(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(UsageError) as raised:
        opened(model, ["a"])
    assert "onnxshot[text]" in raised.value.hint


def test_a_tokenizer_without_tokens_is_blamed_and_not_the_text(tmp_path: Path) -> None:
    model = decoder(tmp_path / "model.onnx")
    empty = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(empty))
    with pytest.raises(CalibrationError, match=r"tokenizer.json finds no token in list: its vocabulary has 0 tokens"):
        opened(model, ["a b"])
    with pytest.raises(CalibrationError, match="list holds no text"):
        opened(model, [" "])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"a": ', "is passed over: Expecting value"), ("[]", "is passed over: it holds no object"),
        (b"\xff", "is passed over: 'utf-8' codec"), ("[" * 100_000, "is passed over: maximum recursion"),
        ('{"pad_token_id": "x"}', "says pad_token_id 'x', which is no id of a token"),
        ('{"eos_token_id": [1, -1]}', "says eos_token_id [1, -1], which is no id of a token"),
        ('{"max_position_embeddings": -5}', "says max_position_embeddings -5, which is no number of tokens"),
    ],
)  # fmt: skip
def test_what_is_wrong_beside_the_model_is_told(tmp_path: Path, content: str | bytes, said: str) -> None:
    model = decoder(tmp_path / "model.onnx")
    write_tokenizer(tmp_path, PLAIN)
    (tmp_path / "config.json").write_bytes(content.encode() if isinstance(content, str) else content)
    with opened(model, [LETTERS]) as data:
        (told,) = [note for note in data.notes if "config.json" in note]
        assert said in told and "passed over" in told
    good = {"pad_token_id": 0, "eos_token_id": [1, 2], "bos_token_id": None, "max_position_embeddings": 64}
    (tmp_path / "config.json").write_text(json.dumps(good))
    with opened(model, [LETTERS]) as data:
        assert not [note for note in data.notes if "config.json" in note]


def test_one_window_is_no_windows(tmp_path: Path) -> None:
    model = decoder(tmp_path / "model.onnx")
    write_tokenizer(tmp_path, PLAIN)
    with opened(model, ["a b c"]) as data:
        assert data.notes[0].startswith("1 window from list: 3 tokens")


def test_notes_tell_windows_tokens_and_few_of_them(tmp_path: Path) -> None:
    model = decoder(tmp_path / "model.onnx")
    write_tokenizer(tmp_path, PLAIN)
    with opened(model, [" ".join([LETTERS] * 4)], TextPreset(length=8), samples=4) as data:
        assert len(data) == 4
        first, *rest = data.notes
    assert first.startswith("4 windows of about 13, evenly spaced, from list: 26 tokens")
    assert any("one token behind a prompt" in note for note in rest)
    assert any("26 tokens are few" in note for note in rest)


def test_the_number_of_windows_is_bounded_where_nobody_asks(tmp_path: Path) -> None:
    model = decoder(tmp_path / "model.onnx")
    write_tokenizer(tmp_path, PLAIN)
    with opened(model, [" ".join([LETTERS] * 100)], TextPreset(length=8), samples="auto") as data:
        assert len(data) == 128
        lengths = [len(data[i].feed["input_ids"][0]) for i in range(128)]
    assert lengths.count(1) == 32 and set(lengths) == {1, 8}


def test_digests_and_the_hash_of_reading_tell_texts_tokenizers_and_lengths_apart(tmp_path: Path) -> None:
    model = decoder(tmp_path / "model.onnx")
    write_tokenizer(tmp_path, PLAIN)
    other = write_tokenizer(tmp_path / "other", [*PLAIN, "more"]).parent

    def told(calib: Sequence[str], preset: TextPreset) -> tuple[list[str], str]:
        with opened(model, calib, preset) as data:
            return data.digests(), data.preset_hash

    same = told([LETTERS], TextPreset(length=5))
    assert same == told([LETTERS], TextPreset(length=5))
    assert len(set(same[0])) == len(same[0]) == 5
    assert told([LETTERS[::-1]], TextPreset(length=5))[0] != same[0]
    assert told([LETTERS], TextPreset(length=6))[1] != same[1]
    bigger = decoder(tmp_path / "other" / "model.onnx", rows=len(PLAIN) + 1)
    with opened(bigger, [LETTERS], TextPreset(other, length=5)) as data:
        assert data.digests() == same[0] and data.preset_hash != same[1]


def test_a_model_of_pictures_takes_no_text(tmp_path: Path) -> None:
    from onnx import helper, save

    node = helper.make_node("Relu", ["x"], ["y"])
    shape = (1, 3, 8, 8)
    graph = helper.make_graph([node], "g", [info("x", 1, *shape)], [info("y", 1, *shape)])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "m.onnx")
    (tmp_path / "t.txt").write_text("a")
    with pytest.raises(CalibrationError, match="no input of the model takes the tokens of a text"):
        opened(tmp_path / "m.onnx", tmp_path / "t.txt")


def test_a_preset_of_pictures_is_refused_for_texts(tmp_path: Path) -> None:
    model = encoder(tmp_path / "model.onnx")
    write_tokenizer(tmp_path)
    with pytest.raises(OnnxshotError, match="holds texts; preset imagenet is not of texts"):
        open_calib(["a"], load_model(model), "imagenet", Settings())


def test_a_preset_file_names_tokenizer_length_and_field(tmp_path: Path) -> None:
    model = encoder(tmp_path / "model.onnx")
    write_tokenizer(tmp_path / "t")
    (tmp_path / "p.yaml").write_text("kind: text\ntokenizer: t\nlength: 4\nfield: body\n")
    (tmp_path / "t.jsonl").write_text('{"text": "z", "body": "a b c"}\n')
    with open_calib(tmp_path / "t.jsonl", load_model(model), str(tmp_path / "p.yaml"), Settings()) as data:
        assert data[0].feed["input_ids"].tolist() == [[2, *ids_of("a b"), 3]]
    (tmp_path / "p.yaml").write_text("kind: text\nlengths: 4\n")
    with pytest.raises(UsageError, match="unknown key 'lengths'"):
        open_calib(tmp_path / "t.jsonl", load_model(model), str(tmp_path / "p.yaml"), Settings())


def test_iterables_of_texts_are_read_and_files_of_a_folder_are_joined(tmp_path: Path) -> None:
    model = encoder(tmp_path / "model.onnx")
    write_tokenizer(tmp_path)
    assert len(feeds(model, iter(["a", "b"]))) == 2
    folder = tmp_path / "texts"
    (folder / "inner").mkdir(parents=True)
    (folder / "1.txt").write_text("a\nb\n")
    (folder / "inner" / "2.md").write_text("c\n")
    with opened(model, folder) as data:
        assert [data.name(i) for i in range(3)] == ["1.txt line 1", "1.txt line 2", "inner/2.md line 1"]
