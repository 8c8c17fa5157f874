"""Batches over a store of objects: a local S3 server. Skipped where that is not installed."""

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from handmade import HANDMADE

from onnxshot.batch import remote, run
from onnxshot.batch.remote import is_remote, local_copy, matches
from onnxshot.errors import UsageError
from onnxshot.observing import cache

moto = pytest.importorskip("moto.server")
s3fs = pytest.importorskip("s3fs")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The file system of a server with an empty bucket 'models'."""
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (("ACCESS_KEY_ID", "x"), ("SECRET_ACCESS_KEY", "y"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("ONNXSHOT_CACHE", str(tmp_path / "cache"))
    urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()
    s3fs.S3FileSystem.clear_instance_cache()
    made = s3fs.S3FileSystem()
    made.mkdir("models")
    yield made
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def kept() -> list[str]:
    """Files of the cache of copies."""
    root = cache.folder() / "remote"
    return sorted(p.relative_to(root).as_posix().split("/", 1)[1] for p in root.rglob("*") if p.is_file())


def test_what_is_remote() -> None:
    assert is_remote("s3://a/b.onnx")
    assert is_remote("https://a/b.onnx")
    assert not is_remote("a/b.onnx")
    assert not is_remote("C:/b.onnx")


def test_a_copy_is_kept_until_the_content_changes(files: Any) -> None:
    files.pipe_file("models/a.bin", b"one")
    path = Path(local_copy("s3://models/a.bin"))
    assert path.read_bytes() == b"one"
    assert local_copy("s3://models/a.bin") == str(path)
    path.write_bytes(b"two")  # damaged, as long as before
    assert Path(local_copy("s3://models/a.bin")).read_bytes() == b"one"
    files.pipe_file("models/a.bin", b"three")
    assert Path(local_copy("s3://models/a.bin")).read_bytes() == b"three"


def test_a_folder_and_a_glob(files: Any) -> None:
    for name in ("b/1.npy", "b/x/2.npy", "c.onnx", "a.onnx"):
        files.pipe_file(f"models/{name}", name.encode())
    folder = Path(local_copy("s3://models/b/"))
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*.npy")} == {"1.npy", "x/2.npy"}
    assert matches("s3://models/*.onnx") == ["s3://models/a.onnx", "s3://models/c.onnx"]


def test_external_data_of_a_model_comes_along(files: Any, tmp_path: Path) -> None:
    model = HANDMADE["resnet_block"]().model
    onnx.save(model, str(tmp_path / "m.onnx"), save_as_external_data=True, location="w.bin", size_threshold=0)
    for name in ("m.onnx", "w.bin"):
        files.put_file(str(tmp_path / name), f"models/{name}")
    copy = local_copy("s3://models/m.onnx", weights=True)
    assert onnx.load(copy).graph.initializer[0].raw_data
    assert kept() == ["m.onnx", "w.bin"]


def test_what_is_not_there_or_too_large_is_told(files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"s3://models/no\.onnx is not there"):
        local_copy("s3://models/no.onnx")
    files.pipe_file("models/a.bin", b"12345")
    monkeypatch.setattr(remote, "MAX_BYTES", 4)
    with pytest.raises(UsageError, match="are downloaded"):
        local_copy("s3://models/a.bin")
    assert not kept()


def test_a_batch_from_and_to_a_bucket_has_the_bytes_of_a_local_one(files: Any, tmp_path: Path) -> None:
    case = HANDMADE["resnet_block"]()
    onnx.save(case.model, str(tmp_path / "net.onnx"))
    np.savez(tmp_path / "calib.npz", x=np.stack([f["x"] for f in case.feeds]))
    for name in ("net.onnx", "calib.npz"):
        files.put_file(str(tmp_path / name), f"models/{name}")
    values: dict[str, Any] = {"targets": ["tensorrt"], "defaults": {"effort": "fast", "emit": "onnx"}}

    def batch(**more: Any) -> Any:
        (tmp_path / "m.yaml").write_text(yaml.safe_dump(values | more))
        return run(tmp_path / "m.yaml")

    far = {"models": [{"model": "s3://models/*.onnx", "calib": "s3://models/calib.npz"}], "output": "s3://models/out/"}
    assert [row["resumed"] for row in batch(**far).rows] == [False]
    batch(models=[{"model": "net.onnx", "calib": "calib.npz"}], output="out")
    place = "net/tensorrt/net.onnx"
    assert files.cat_file(f"models/out/{place}") == (tmp_path / "out" / place).read_bytes()
    assert json.loads(files.cat_file("models/out/summary.json"))["ok"] == 1
    assert [row["resumed"] for row in batch(**far).rows] == [True]
    files.rm_file("models/out/net/tensorrt/cell.json")  # as an upload that was cut leaves it
    assert [row["resumed"] for row in batch(**far).rows] == [False]
    log = [json.loads(line)["event"] for line in files.cat_file("models/out/batch.jsonl").splitlines()]
    assert log == ["started", "done", "kept", "started", "done"]
