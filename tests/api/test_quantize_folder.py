"""A folder that a library loads becomes such a folder: names, copies, configuration, and what is never overwritten."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from handmade.core import model, weight
from onnx import TensorProto, helper, numpy_helper

import onnxshot
from onnxshot.errors import ModelError, UsageError
from onnxshot.settings import Settings

QUICK = Settings(threads=1, verify=False, use_cache=False)
TOKENIZER = '{"model": {"vocab": {}}}'


def network(dtype: str = "float") -> onnx.ModelProto:
    values = weight(64, 48) if dtype == "float" else weight(64, 48).astype(np.float16)
    return model(f"g ({dtype}[B, 64] x) => ({dtype}[B, 48] y) {{ y = MatMul(x, w) }}", {"w": values})


def merged() -> onnx.ModelProto:
    """A decoder as optimum merges it: two branches whose weights lie in the graph around them."""

    def branch(name: str, *, past: bool) -> onnx.GraphProto:
        last = helper.make_node("Concat", ["past", f"{name}_h"], [f"{name}_c"], axis=0)
        nodes = [
            helper.make_node("MatMul", ["x", "w"], [f"{name}_h"], name=f"{name}/up"),
            last if past else helper.make_node("Identity", [f"{name}_h"], [f"{name}_c"]),
            helper.make_node("MatMul", [f"{name}_h", "v"], [f"{name}_y"], name=f"{name}/down"),
        ]
        outputs = [helper.make_tensor_value_info(f"{name}_{o}", TensorProto.FLOAT, None) for o in "yc"]
        return helper.make_graph(nodes, name, [], outputs)

    choice = helper.make_node(
        "If", ["use_cache_branch"], ["logits", "present"], then_branch=branch("with_past", past=True),
        else_branch=branch("no_past", past=False),
    )  # fmt: skip
    inputs = [
        helper.make_tensor_value_info("use_cache_branch", TensorProto.BOOL, []),
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 64]),
        helper.make_tensor_value_info("past", TensorProto.FLOAT, ["p", 96]),
    ]
    sizes = {"logits": 64, "present": 96}
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["a", size]) for n, size in sizes.items()]
    held = [numpy_helper.from_array(weight(64, 96), "w"), numpy_helper.from_array(weight(96, 64), "v")]
    graph = helper.make_graph([choice], "merged", inputs, outputs, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def of_transformers(folder: Path, make: Callable[[], onnx.ModelProto] = network, name: str = "model") -> Path:
    (folder / "onnx").mkdir(parents=True)
    onnx.save(make(), folder / f"onnx/{name}.onnx")
    (folder / "config.json").write_text('{"model_type": "llama", "vocab_size": 48}')
    (folder / "tokenizer.json").write_text(TOKENIZER)
    (folder / "generation_config.json").write_text("{}")
    return folder


def state(folder: Path) -> dict[str, str]:
    """SHA-256 of every file by its path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def db(wanted: Path, got: Path, feed: dict[str, np.ndarray]) -> float:
    sessions = (onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]) for path in (wanted, got))
    a, b = (session.run(None, feed) for session in sessions)
    noise = sum(float(((x - y).astype(np.float64) ** 2).sum()) for x, y in zip(a, b, strict=True))
    return 10 * np.log10(sum(float((x.astype(np.float64) ** 2).sum()) for x in a) / noise)


def test_a_folder_gets_the_names_that_transformers_js_expects(tmp_path: Path) -> None:
    source = of_transformers(tmp_path / "net")
    before = state(source)
    result = onnxshot.quantize_folder(source, recipe=onnxshot.Recipe(mode="weights", bits=4), settings=QUICK)
    assert result.folder == tmp_path / "net-q4"
    assert state(source) == before
    made = state(result.folder)
    assert set(made) == {*before, "onnx/model_q4.onnx", "onnx/model_q4.recipe.yaml"} - {"onnx/model.onnx"}
    assert all(made[name] == before[name] for name in ("tokenizer.json", "generation_config.json"))
    config = json.loads((result.folder / "config.json").read_text())
    assert config == {"model_type": "llama", "vocab_size": 48, "transformers.js_config": {"dtype": "q4"}}
    feed = {"x": np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)}
    assert 15 < db(source / "onnx/model.onnx", result.folder / "onnx/model_q4.onnx", feed) < 30
    report = result.reports["onnx/model.onnx"]
    assert [artifact.path for artifact in report.outputs] == [str(result.folder / "onnx/model_q4.onnx")]
    values = result.to_dict()
    assert values["copied"] == ["config.json", "generation_config.json", "tokenizer.json"]
    json.dumps(values)


def test_a_second_form_is_added_and_nothing_is_overwritten(tmp_path: Path) -> None:
    source, out = of_transformers(tmp_path / "net"), tmp_path / "forms"
    onnxshot.quantize_folder(source, output=out, mode="weights", bits=4, settings=QUICK)
    first = state(out)
    (out / "README.md").write_text("mine")
    onnxshot.quantize_folder(source, output=out, mode="weights", bits=8, settings=QUICK)
    second = state(out)
    assert {**first, **second} == second | {"config.json": second["config.json"]}
    assert {"onnx/model_q4.onnx", "onnx/model_quantized.onnx", "README.md"} < set(second)
    assert all(second[name] == first[name] for name in first if name != "config.json")
    assert json.loads((out / "config.json").read_text())["transformers.js_config"]["dtype"] == "q4"
    onnxshot.quantize_folder(source, output=out, mode="weights", bits=4, settings=QUICK)  # its own file is replaced
    assert set(state(out)) == set(second)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("onnx/model_q4.onnx", "onnxshot has not written it"), ("tokenizer.json", "it differs from"),
        ("config.json", "it differs from"),
    ],
)
def test_a_file_of_another_is_refused(tmp_path: Path, name: str, said: str) -> None:
    source, out = of_transformers(tmp_path / "net"), tmp_path / "out"
    (out / "onnx").mkdir(parents=True)
    if name.endswith(".onnx"):
        onnx.save(network(), out / name)
    else:
        (out / name).write_text('{"model_type": "gpt2"}')
    before = state(out)
    with pytest.raises(UsageError, match=said):
        onnxshot.quantize_folder(source, output=out, mode="weights", bits=4, settings=QUICK)
    assert state(out) == before


def test_forms_can_be_added_to_the_folder_itself(tmp_path: Path) -> None:
    source = of_transformers(tmp_path / "net")
    before = state(source)
    result = onnxshot.quantize_folder(source, output=source, mode="weights", bits=8, settings=QUICK)
    added = {"onnx/model_quantized.onnx", "onnx/model_quantized.recipe.yaml"}
    assert set(state(source)) == {*before, *added}
    assert {name: state(source)[name] for name in before} == before
    assert "dtype: 'q8'" in result.notes[0]


def test_float16_models_get_their_own_name(tmp_path: Path) -> None:
    source = of_transformers(tmp_path / "net", lambda: network("float16"), "model_fp16")
    made = onnxshot.quantize_folder(source, mode="weights", bits=4, settings=QUICK).folder
    assert made.name == "net-q4f16"
    assert (made / "onnx/model_q4f16.onnx").is_file()
    assert json.loads((made / "config.json").read_text())["transformers.js_config"]["dtype"] == "q4f16"


def test_external_data_has_the_name_that_transformers_js_expects(tmp_path: Path) -> None:
    source = of_transformers(tmp_path / "net")
    path = source / "onnx/model.onnx"
    onnx.save(network(), path, save_as_external_data=True, location="model.onnx_data", size_threshold=0)
    made = onnxshot.quantize_folder(source, mode="weights", bits=8, settings=QUICK).folder
    files = sorted(file.name for file in (made / "onnx").iterdir())
    assert files == ["model_quantized.onnx", "model_quantized.onnx_data", "model_quantized.recipe.yaml"]
    config = json.loads((made / "config.json").read_text())["transformers.js_config"]
    assert config == {"dtype": "q8", "use_external_data_format": {"model_quantized.onnx": 1}}
    feed = {"x": np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)}
    assert db(path, made / "onnx/model_quantized.onnx", feed) > 35


def test_both_branches_of_a_merged_decoder_share_their_blocks(tmp_path: Path) -> None:
    source = of_transformers(tmp_path / "net", merged, "decoder_model_merged")
    made = onnxshot.quantize_folder(source, mode="weights", bits=4, settings=QUICK).folder / "onnx"
    found = onnx.load(made / "decoder_model_merged_q4.onnx")
    branches = [attribute.g for node in found.graph.node if node.op_type == "If" for attribute in node.attribute]
    read = [[n.input[1] for n in graph.node if n.op_type == "MatMulNBits"] for graph in branches]
    assert len(read[0]) == 2
    assert read[0] == read[1]
    assert set(read[0]) < {tensor.name for tensor in found.graph.initializer}, "they lie around the branches"
    rng = np.random.default_rng(1)
    for past in (False, True):
        feed = {
            "use_cache_branch": np.array(past), "x": rng.normal(size=(2, 64)).astype(np.float32),
            "past": rng.normal(size=(3, 96)).astype(np.float32),
        }  # fmt: skip
        assert db(source / "onnx/decoder_model_merged.onnx", made / "decoder_model_merged_q4.onnx", feed) > 10


def test_a_genai_folder_keeps_its_names(tmp_path: Path) -> None:
    source = tmp_path / "net"
    source.mkdir()
    location = "model.onnx.data"
    onnx.save(network(), source / "model.onnx", save_as_external_data=True, location=location, size_threshold=0)
    (source / "genai_config.json").write_text('{"model": {"decoder": {"filename": "model.onnx"}}}')
    (source / "tokenizer.json").write_text(TOKENIZER)
    made = onnxshot.quantize_folder(source, mode="weights", bits=4, settings=QUICK).folder
    files = {"genai_config.json", "model.onnx", "model.onnx.data", "model.recipe.yaml", "tokenizer.json"}
    assert set(state(made)) == files
    assert state(made)["genai_config.json"] == state(source)["genai_config.json"]


def test_nothing_is_left_of_a_run_that_fails(tmp_path: Path) -> None:
    source = of_transformers(tmp_path / "net", name="decoder_model")
    (source / "onnx/encoder_model.onnx").write_bytes((source / "onnx/decoder_model.onnx").read_bytes())
    made = onnxshot.quantize_folder(source, output=tmp_path / "first", mode="weights", bits=4, settings=QUICK)
    assert sorted(made.reports) == ["onnx/decoder_model.onnx", "onnx/encoder_model.onnx"]
    quantized = (made.folder / "onnx/encoder_model_q4.onnx").read_bytes()
    (source / "onnx/encoder_model.onnx").write_bytes(quantized)  # the second one cannot be quantized again
    with pytest.raises((ModelError, UsageError), match=r"encoder_model.onnx"):
        onnxshot.quantize_folder(source, output=tmp_path / "second", mode="weights", bits=4, settings=QUICK)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "net"]


@pytest.mark.parametrize("place", ["net/out", "."])
def test_an_output_in_or_around_the_input_is_refused(tmp_path: Path, place: str) -> None:
    source = of_transformers(tmp_path / "net")
    with pytest.raises(UsageError, match="lies in the folder"):
        onnxshot.quantize_folder(source, output=tmp_path / place, mode="weights", bits=4, settings=QUICK)
