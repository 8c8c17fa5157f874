import json
from pathlib import Path, PurePosixPath

import onnx
import pytest
from handmade.core import model, weight

from onnxshot.bundles.model_folder import GENAI, TRANSFORMERS, read_folder
from onnxshot.errors import ModelError


def small() -> onnx.ModelProto:
    return model("g (float[B, 32] x) => (float[B, 16] y) { y = MatMul(x, w) }", {"w": weight(32, 16)})


def filled(folder: Path, *names: str, **texts: str) -> Path:
    """A folder with a small model at each of the names, and configurations."""
    folder.mkdir(exist_ok=True, parents=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        onnx.save(small(), folder / name)
    for name, text in texts.items():
        (folder / f"{name}.json").write_text(text)
    return folder


def listed(names: tuple[PurePosixPath, ...]) -> list[str]:
    return [str(name) for name in names]


def test_every_model_of_the_folder_is_read_and_what_it_needs_is_copied(tmp_path: Path) -> None:
    names = ("onnx/encoder_model.onnx", "onnx/decoder_model.onnx", "onnx/decoder_model_merged.onnx")
    folder = filled(tmp_path / "net", *names, config="{}", tokenizer="{}", generation_config="{}")
    (folder / "1_Pooling").mkdir()
    for name in ("1_Pooling/config.json", "merges.txt", "model.safetensors", "pytorch_model.bin", ".gitattributes"):
        (folder / name).write_text("x")
    found = read_folder(folder)
    assert found.kind == TRANSFORMERS
    assert listed(found.models) == sorted(names)
    wanted = ["1_Pooling/config.json", "config.json", "generation_config.json", "merges.txt", "tokenizer.json"]
    assert sorted(listed(found.companions)) == wanted
    assert listed(found.left_out) == ["model.safetensors", "pytorch_model.bin"]


def test_other_forms_of_a_model_are_not_its_sources(tmp_path: Path) -> None:
    forms = ("model", "model_fp16", "model_q4", "model_quantized", "model_O2", "model_qint8_avx512")
    folder = filled(tmp_path / "net", *(f"onnx/{name}.onnx" for name in forms), config="{}")
    assert listed(read_folder(folder).models) == ["onnx/model.onnx"]
    (folder / "onnx/model.onnx").unlink()
    assert listed(read_folder(folder).models) == ["onnx/model_fp16.onnx"]


def test_external_data_belongs_to_its_model(tmp_path: Path) -> None:
    folder = filled(tmp_path / "net", "onnx/model.onnx", config="{}")
    onnx.save(small(), folder / "onnx/model.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    assert (folder / "onnx/weights").exists()
    assert listed(read_folder(folder).companions) == ["config.json"]


def test_a_genai_config_names_its_models(tmp_path: Path) -> None:
    pipeline = [{"embed": {"filename": "embed.onnx"}}, {"head": {"filename": "head.onnx"}}]
    config = {"model": {"decoder": {"pipeline": pipeline}, "vision": {"filename": "vision.onnx"}}}
    folder = filled(tmp_path, "embed.onnx", "head.onnx", "vision.onnx", "other.onnx", genai_config=json.dumps(config))
    found = read_folder(folder)
    assert (found.kind, listed(found.models)) == (GENAI, ["embed.onnx", "head.onnx", "vision.onnx"])
    assert listed(found.companions) == ["genai_config.json"]
    assert listed(found.left_out) == []


@pytest.mark.parametrize(
    ("names", "texts", "said"),
    [
        ((), {"config": "{}"}, "holds no .onnx file"),
        (("a.onnx", "b.onnx"), {}, r"holds 2 models, such as a.onnx, b.onnx, and neither config.json nor"),
        (("a.onnx",), {"config": "{"}, "config.json cannot be read as JSON"),
        (("a.onnx",), {"config": "[1]"}, "not keys and values"),
        (("a.onnx",), {"genai_config": "{}"}, "names no .onnx file"),
        (("a.onnx",), {"genai_config": '{"model": {"decoder": {"filename": "b.onnx"}}}'}, "'b.onnx', which is not in"),
        (("a.onnx",), {"genai_config": '{"model": {"decoder": {"filename": "../a.onnx"}}}'}, "which is outside"),
        (("a.onnx",), {"genai_config": "[" * 100_000}, "cannot be read as JSON"),
    ],
)
def test_what_is_no_folder_of_a_model_is_refused(
    tmp_path: Path, names: tuple[str, ...], texts: dict[str, str], said: str
) -> None:
    folder = filled(tmp_path / "net", *names, **texts)
    with pytest.raises(ModelError, match=said):
        read_folder(folder)


def test_links_stay_in_the_folder(tmp_path: Path) -> None:
    folder = filled(tmp_path / "net", "model.onnx", config="{}")
    (folder / "alias.json").symlink_to("config.json")
    assert "alias.json" in listed(read_folder(folder).companions)
    (tmp_path / "secret").write_text("mine")
    (folder / "tokenizer.json").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelError, match=r"tokenizer.json is a link that leads out of"):
        read_folder(folder)
    (folder / "tokenizer.json").unlink()
    (folder / "more").symlink_to(tmp_path)
    with pytest.raises(ModelError, match="is a link to a folder"):
        read_folder(folder)


def test_a_folder_in_the_cache_of_the_hub_is_made_of_links(tmp_path: Path) -> None:
    repository = tmp_path / "models--owner--net"
    folder = filled(repository / "snapshots" / "abc", "onnx/model.onnx")
    (repository / "blobs").mkdir()
    (repository / "blobs" / "123").write_text("{}")
    (folder / "config.json").symlink_to("../../blobs/123")
    assert listed(read_folder(folder).companions) == ["config.json"]
    (folder / "tokenizer.json").symlink_to("../../refs")
    with pytest.raises(ModelError, match="is a link that leads out of"):
        read_folder(folder)
