"""Batches over stores of objects: local servers of S3 and Google Cloud Storage. Skipped where one is not installed."""

import json
import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from handmade import HANDMADE

from onnxshot.batch import run
from onnxshot.errors import UsageError
from onnxshot.files import cache_folder
from onnxshot.files.urls import is_remote
from onnxshot.remote import copies
from onnxshot.remote.copies import local_copy, matches


@dataclass(frozen=True)
class Bucket:
    """An empty bucket 'models' of a local server: its URL, and its file system."""

    url: str
    files: Any

    def put(self, name: str, content: bytes) -> str:
        """Put an object there; its URL."""
        self.files.pipe_file(f"models/{name}", content)
        return f"{self.url}/{name}"


@contextmanager
def s3_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    moto = pytest.importorskip("moto.server", reason="S3 is tested against moto[server]")
    s3fs = pytest.importorskip("s3fs", reason="s3:// needs the extra remote")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (("ACCESS_KEY_ID", "x"), ("SECRET_ACCESS_KEY", "y"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()
    yield s3fs.S3FileSystem
    server.stop()


@contextmanager
def gs_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    emulator = pytest.importorskip("gcp_storage_emulator.server", reason="gs:// is tested against gcp-storage-emulator")
    # Otherwise gcsfs asks Google what kind of bucket it is.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    gcsfs = pytest.importorskip("gcsfs", reason="gs:// needs the extra gcs")
    server = emulator.create_server("127.0.0.1", 0, in_memory=True)
    server.start()
    host, port = server._api._httpd.server_address[:2]
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://{host}:{port}")
    monkeypatch.setenv("NO_GCE_CHECK", "true")  # no metadata server is looked for
    yield gcsfs.GCSFileSystem
    server.stop()


@pytest.fixture(params=["s3", "gs"])
def bucket(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    monkeypatch.setenv("ONNXSHOT_CACHE", str(tmp_path / "cache"))
    with {"s3": s3_server, "gs": gs_server}[request.param](monkeypatch) as kind:
        kind.clear_instance_cache()
        files = kind()
        files.mkdir("models")
        yield Bucket(f"{request.param}://models", files)
        kind.clear_instance_cache()


def kept() -> list[str]:
    """Files of the cache of copies."""
    root = cache_folder.folder() / "remote"
    found = (p for p in root.rglob("*") if p.is_file() and not p.name.startswith("."))
    return sorted(p.relative_to(root).as_posix().split("/", 1)[1] for p in found)


def test_what_is_remote() -> None:
    assert is_remote("s3://a/b.onnx")
    assert is_remote("https://a/b.onnx")
    assert not is_remote("a/b.onnx")
    assert not is_remote("C:/b.onnx")


def test_a_copy_is_kept_until_the_content_changes(bucket: Bucket) -> None:
    url = bucket.put("a.bin", b"one")
    path = Path(local_copy(url))
    assert path.read_bytes() == b"one"
    assert local_copy(url) == str(path)
    path.write_bytes(b"two")  # damaged, as long as before
    assert Path(local_copy(url)).read_bytes() == b"one"
    bucket.put("a.bin", b"three")
    assert Path(local_copy(url)).read_bytes() == b"three"


def test_a_folder_and_a_glob(bucket: Bucket) -> None:
    for name in ("b/1.npy", "b/x/2.npy", "c.onnx", "a.onnx"):
        bucket.put(name, name.encode())
    folder = Path(local_copy(f"{bucket.url}/b/"))
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*.npy")} == {"1.npy", "x/2.npy"}
    assert matches(f"{bucket.url}/*.onnx") == [f"{bucket.url}/a.onnx", f"{bucket.url}/c.onnx"]


def test_external_data_of_a_model_comes_along_and_anew_when_it_changes(bucket: Bucket, tmp_path: Path) -> None:
    model = HANDMADE["resnet_block"]().model
    onnx.save(model, str(tmp_path / "m.onnx"), save_as_external_data=True, location="w.bin", size_threshold=0)
    weights = (tmp_path / "w.bin").read_bytes()
    url = bucket.put("m.onnx", (tmp_path / "m.onnx").read_bytes())
    bucket.put("w.bin", weights)
    copy = Path(local_copy(url, weights=True))
    assert onnx.load(copy).graph.initializer[0].raw_data
    assert kept() == ["m.onnx", "w.bin"]
    bucket.put("w.bin", bytes(len(weights)))
    assert local_copy(url, weights=True) == str(copy)
    assert copy.with_name("w.bin").read_bytes() == bytes(len(weights))


def test_what_is_not_there_or_too_large_is_told(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"://models/no\.onnx is not there"):
        local_copy(f"{bucket.url}/no.onnx")
    url = bucket.put("a.bin", b"12345")
    monkeypatch.setattr(copies, "MAX_BYTES", 4)
    with pytest.raises(UsageError, match="are downloaded"):
        local_copy(url)
    monkeypatch.setattr(copies, "MAX_BYTES", 5)
    monkeypatch.setattr(copies.shutil, "disk_usage", lambda _: SimpleNamespace(free=4))
    with pytest.raises(UsageError, match=r"holds 5e-09 GB, and .*cache has 4e-09 GB free"):
        local_copy(url)
    assert not kept()


def test_a_tag_that_is_no_sum_is_no_damage_but_content_that_changes_meanwhile_is(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 gives objects under a customer's key tags that look like MD5 sums and are none."""
    url = bucket.put("a.bin", b"one")
    info = bucket.files.info

    def tagged(path: str) -> dict[str, Any]:
        found = {k: v for k, v in info(path).items() if k not in ("md5Hash", "etag")}
        return {**found, "ETag": f'"{next(tags)}"'}

    monkeypatch.setattr(bucket.files, "info", tagged)
    tags = iter(["0" * 32] * 2)
    assert Path(local_copy(url)).read_bytes() == b"one"
    tags = iter(["1" * 32, "2" * 32])
    with pytest.raises(UsageError, match="not what the store said"):
        local_copy(url)


def test_a_batch_from_and_to_a_bucket_has_the_bytes_of_a_local_one(bucket: Bucket, tmp_path: Path) -> None:
    case = HANDMADE["resnet_block"]()
    onnx.save(case.model, str(tmp_path / "net.onnx"))
    np.savez(tmp_path / "calib.npz", x=np.stack([f["x"] for f in case.feeds]))
    (tmp_path / "base.yaml").write_text("effort: fast")
    (tmp_path / "r.yaml").write_text("extends: base.yaml\nmethod: minmax")
    for name in ("net.onnx", "calib.npz", "base.yaml", "r.yaml"):
        bucket.put(name, (tmp_path / name).read_bytes())
    values: dict[str, Any] = {"targets": ["tensorrt"], "defaults": {"emit": "onnx"}}

    def batch(**more: Any) -> Any:
        (tmp_path / "m.yaml").write_text(yaml.safe_dump(values | more))
        return run(tmp_path / "m.yaml")

    at = bucket.url
    entry = {"model": f"{at}/*.onnx", "calib": f"{at}/calib.npz", "recipe": f"{at}/r.yaml"}
    far: dict[str, Any] = {"models": [entry], "output": f"{at}/out/"}
    assert [row["resumed"] for row in batch(**far).rows] == [False]
    batch(models=[{"model": "net.onnx", "calib": "calib.npz", "recipe": "r.yaml"}], output="out")
    place = "net/tensorrt/net.onnx"
    assert bucket.files.cat_file(f"models/out/{place}") == (tmp_path / "out" / place).read_bytes()
    assert json.loads(bucket.files.cat_file("models/out/summary.json"))["ok"] == 1
    assert [row["resumed"] for row in batch(**far).rows] == [True]
    bucket.files.rm_file("models/out/net/tensorrt/cell.json")  # as an upload that was cut leaves it
    assert [row["resumed"] for row in batch(**far).rows] == [False]
    cut = {"key": "", "outputs": [{"file": "net.onnx"}, {"file": "net.recipe.yaml"}, {"file": "report.json"}]}
    bucket.put("other/net/tensorrt/cell.json", json.dumps(cut).encode())  # one that was cut the first time
    bucket.put("other/net/tensorrt/net.onnx", b"half")
    assert batch(models=[entry], output=f"{at}/other/").exit_code == 0
    log = [json.loads(line)["event"] for line in bucket.files.cat_file("models/out/batch.jsonl").splitlines()]
    assert log == ["started", "done", "kept", "started", "done"]


@pytest.mark.parametrize("name", ["summary.json", "batch.jsonl", "net/ort/report.json"])
def test_an_object_of_somebody_else_is_not_replaced(bucket: Bucket, tmp_path: Path, name: str) -> None:
    case = HANDMADE["resnet_block"]()
    onnx.save(case.model, str(tmp_path / "net.onnx"))
    values = {"models": ["net.onnx"], "output": f"{bucket.url}/out", "defaults": {"mode": "weights"}}
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(values))
    bucket.put(f"out/{name}", b'{"mine": 1}\n')
    if "/" in name:
        (row,) = run(tmp_path / "m.yaml").rows
        assert row["code"] == UsageError.exit_code
        assert "was not written by a batch" in row["error"]
    else:
        with pytest.raises(UsageError, match="exists and was not written by a batch"):
            run(tmp_path / "m.yaml")
    assert bucket.files.cat_file(f"models/out/{name}") == b'{"mine": 1}\n'
