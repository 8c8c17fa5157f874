"""Batches that read from a web server. Skipped where fsspec or aiohttp is not installed."""

import base64
import hashlib
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from batch_examples import artifacts
from fixture_data import facts, fixture
from handmade import HANDMADE
from webserver import Site, site

from onnxshot.api.calibrate import calibrate
from onnxshot.batch import run
from onnxshot.batch.manifest import load_manifest
from onnxshot.batch.remote_store import store_of
from onnxshot.cli import app as cli
from onnxshot.errors import CalibrationError, ModelError, TargetError, UsageError
from onnxshot.files import cache_folder
from onnxshot.graph.load import load_model
from onnxshot.recipes.files import load_stages
from onnxshot.remote import copies, filesystems
from onnxshot.remote.copies import local_copy, matches

pytest.importorskip("fsspec", reason="https:// needs the extra remote")
pytest.importorskip("aiohttp", reason="https:// needs the extra remote")


SUM = base64.b64encode(hashlib.md5(b"PK content").digest()).decode()


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("ONNXSHOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with site() as made:
        yield made


def content(url: str) -> bytes:
    return Path(local_copy(url)).read_bytes()


def refused(url: str) -> str:
    with pytest.raises(UsageError) as caught:
        local_copy(url)
    root = cache_folder.folder() / "remote"
    assert not [p for p in root.rglob("*") if p.is_file()], "nothing half copied stays"
    return str(caught.value)


def net(folder: Path) -> dict[str, bytes]:
    """A model, its samples, a preset, and a recipe that extends another, in that folder; their bytes."""
    case = HANDMADE["resnet_block"]()
    onnx.save(case.model, str(folder / "net.onnx"))
    np.savez(folder / "calib.npz", x=np.stack([f["x"] for f in case.feeds]))
    (folder / "recipes").mkdir()
    (folder / "recipes" / "r.yaml").write_text("extends: ../base.yaml\nmethod: minmax")
    (folder / "base.yaml").write_text("effort: fast")
    (folder / "p.yaml").write_text("extends: imagenet")
    names = ("net.onnx", "calib.npz", "base.yaml", "recipes/r.yaml", "p.yaml")
    return {name: (folder / name).read_bytes() for name in names}


def test_a_batch_from_a_web_server_has_the_bytes_of_a_local_one(web: Site, tmp_path: Path) -> None:
    files = net(tmp_path)
    for name, body in files.items():
        web.put(name, body)

    def batch(at: str, output: str) -> Any:
        read = {"model": "net.onnx", "calib": "calib.npz", "recipe": "recipes/r.yaml", "preset": "p.yaml"}
        entry = {key: f"{at}{name}" for key, name in read.items()}
        values = {"models": [entry], "targets": ["ort", "tensorrt"], "output": output, "defaults": {"emit": "onnx"}}
        (tmp_path / "m.yaml").write_text(yaml.safe_dump(values))
        return run(tmp_path / "m.yaml")

    assert [row["verdict"] for row in batch(f"{web.url}/", "far").rows] == ["ok", "ok"]
    assert {name: web.count("GET", name) for name in files} == dict.fromkeys(files, 1)
    batch("", "near")
    assert artifacts(tmp_path / "far") == artifacts(tmp_path / "near")
    assert len(artifacts(tmp_path / "far")) == 2
    assert [row["resumed"] for row in batch(f"{web.url}/", "far").rows] == [True, True]
    assert {name: web.count("GET", name) for name in files} == dict.fromkeys(files, 1)
    web.put("recipes/r.yaml", b"effort: fast\nmethod: percentile")
    assert [row["resumed"] for row in batch(f"{web.url}/", "far").rows] == [False, False]


def test_pictures_become_inputs_by_a_remote_preset(web: Site, tmp_path: Path) -> None:
    known = facts()["digits_mobile"]
    preset = fixture(known["preset"])
    calib = tmp_path / "calib"
    calib.mkdir()
    for path in sorted(fixture(known["calib"]).iterdir())[:4]:
        shutil.copyfile(path, calib / path.name)
    for output, given in (("far", web.put("p.yaml?v=2", preset.read_bytes())), ("near", str(preset))):
        values = {"models": [str(fixture("digits_mobile"))], "output": output}
        values["defaults"] = {"calib": "calib", "preset": given, "effort": "fast"}
        (tmp_path / "m.yaml").write_text(yaml.safe_dump(values))
        assert [row["verdict"] for row in run(tmp_path / "m.yaml").rows] == ["ok"]
    assert artifacts(tmp_path / "far") == artifacts(tmp_path / "near")


def test_external_data_lies_beside_a_model_whatever_its_query(web: Site, tmp_path: Path) -> None:
    model = HANDMADE["resnet_block"]().model
    onnx.save(model, str(tmp_path / "m.onnx"), save_as_external_data=True, location="w.bin", size_threshold=0)
    url = web.put("a/m.onnx?signature=x/y", (tmp_path / "m.onnx").read_bytes())
    web.put("a/w.bin", (tmp_path / "w.bin").read_bytes())
    copy = Path(local_copy(url, weights=True))
    assert copy.name == "m.onnx"
    assert onnx.load(copy).graph.initializer[0].raw_data
    del web.pages["/a/w.bin"]
    with pytest.raises(UsageError, match=r"/a/w\.bin is not there"):
        local_copy(url, weights=True)


def test_a_copy_is_kept_by_its_tag_or_time_and_else_fetched_anew(web: Site) -> None:
    tagged = web.put("a.bin", b"one")
    timed = web.put("b.bin", b"one", tagged=False, headers={"Last-Modified": "Sat, 01 Jan 2000 00:00:00 GMT"})
    bare = web.put("c.bin", b"one", tagged=False)
    first = [local_copy(url) for url in (tagged, timed, bare)]
    assert [local_copy(url) for url in (tagged, timed, bare)] == first
    assert [web.count("GET", f"{name}.bin") for name in "abc"] == [1, 1, 2]
    web.put("c.bin", b"two", tagged=False)
    assert content(bare) == b"two"
    assert Path(first[2]).read_bytes() == b"one", "another run may be reading it"
    assert content(web.put("a.bin", b"two")) == b"two"
    Path(first[1]).write_bytes(b"0ne")  # damaged
    assert content(timed) == b"one"


@pytest.mark.parametrize(
    "how",
    [
        {"length": False}, {"chunked": True}, {"length": False, "tagged": False}, {"head": False},
        {"headers": {"Content-Type": "text/html"}}, {"headers": {"Content-MD5": SUM}},
    ],
    ids=str,
)  # fmt: skip
def test_what_servers_leave_out_or_say_wrong_does_not_matter(web: Site, how: dict[str, Any]) -> None:
    assert content(web.put("a.bin", b"PK content", **how)) == b"PK content"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(web: Site, status: int) -> None:
    web.put("there/b.bin", b"content")
    web.put("a.onnx", b"", status=status, headers={"Location": "/there/b.bin"})
    copy = Path(local_copy(f"{web.url}/a.onnx"))
    assert (copy.name, copy.read_bytes()) == ("a.onnx", b"content")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"status": 404}, "/a.onnx is not there"),
        ({"status": 410}, "/a.onnx is not there"),
        ({"status": 401}, "/a.onnx cannot be reached: the server answers 401 Unauthorized"),
        ({"status": 403}, "/a.onnx cannot be reached: the server answers 403 Forbidden"),
        ({"status": 503}, "/a.onnx cannot be reached: the server answers 503 Service Unavailable"),
        ({"status": 302, "headers": {"Location": "/a.onnx"}}, "the server redirects without end"),
        ({"status": 302, "headers": {"Location": "/none"}}, "/a.onnx is not there"),
        ({"body": b"\n<!DOCTYPE html><title>Log in</title>"}, "/a.onnx is a page of HTML, not a file of data"),
        ({"body": b"<html><a href='x'>", "headers": {"Content-Type": "text/html"}}, "is a page of HTML"),
        ({"body": b"12345678", "sent": 4}, "/a.onnx cannot be reached: "),
        ({"body": b"123", "headers": {"Content-MD5": "AAAAAAAAAAAAAAAAAAAAAA=="}}, "not what the store said it is"),
    ],
    ids=str,
)
def test_what_a_server_does_not_give_is_told(web: Site, how: dict[str, Any], said: str) -> None:
    url = web.put("a.onnx", how.pop("body", b""), **how)
    assert said in refused(url)


def test_a_server_that_is_silent_or_gone_is_told(web: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystems, "SECONDS", 0.2)
    assert "a.onnx cannot be reached: no answer for 0.2 seconds" in refused(web.put("a.onnx", b"", silent=60))
    with site() as other:
        url = f"{other.url}/a.onnx"
    assert "/a.onnx cannot be reached: " in refused(url)
    with pytest.raises(UsageError, match="cannot be reached"):
        matches(f"{other.url}/*.onnx")


@pytest.mark.parametrize("how", [{}, {"length": False}, {"chunked": True}], ids=str)
def test_a_download_ends_where_it_grows_too_large(
    web: Site, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "MAX_BYTES", 4)
    assert "are downloaded" in refused(web.put("a.bin", b"12345", **how))


def test_a_glob_asks_for_the_page_of_links(web: Site) -> None:
    web.put("m/", b"<a href='?C=N'>Name</a><a href='../'>Up</a><a href='b.onnx'>b</a><a href='a.onnx'>a</a>",
        headers={"Content-Type": "text/html"})  # fmt: skip
    assert matches(f"{web.url}/m/*.onnx") == [f"{web.url}/m/a.onnx", f"{web.url}/m/b.onnx"]
    with pytest.raises(UsageError, match="is not there"):
        matches(f"{web.url}/n/*.onnx")


def test_queries_and_passwords_are_not_told(web: Site, tmp_path: Path) -> None:
    url = web.url.replace("//", "//me:secret@") + "/no.onnx?signature=secret"
    assert "secret" not in refused(url)
    (tmp_path / "m.yaml").write_text(yaml.safe_dump({"models": [url], "output": "out"}))
    (entry,) = load_manifest(tmp_path / "m.yaml").entries
    assert entry.name == "no", "a ? is no glob"
    summary = run(tmp_path / "m.yaml")
    assert [row["verdict"] for row in summary.rows] == ["failed"]
    assert "/no.onnx?... is not there" in summary.rows[0]["error"]
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file() and "secret" in p.read_text()]
    (tmp_path / "m.yaml").write_text(yaml.safe_dump({"models": [3], "output": "out", "defaults": {"preset": url}}))
    with pytest.raises(UsageError) as caught:
        load_manifest(tmp_path / "m.yaml")
    assert "secret" not in str(caught.value)


def test_what_is_no_model_is_told_with_its_url(web: Site, tmp_path: Path) -> None:
    url = web.put("net.onnx", b'{"error": "no such revision"}')
    values = {"models": [url], "output": "out", "defaults": {"calib": "random"}}
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(values))
    (row,) = run(tmp_path / "m.yaml").rows
    assert (row["verdict"], row["code"]) == ("failed", ModelError.exit_code)
    assert url in row["error"]
    assert str(tmp_path) not in row["error"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"output": "https://h/out"}, "output is 'https://h/out' (a web server takes no files"),
        ({"thresholds": {"eval": "https://h/s.py:f", "max_drop": 1}}, "thresholds.eval is 'https://h/s.py:f' (code is"),
        ({"defaults": {"preset": "https://h/p"}}, "defaults.preset is 'https://h/p' (a file that ends in .yaml)"),
    ],
)
def test_what_cannot_be_remote_is_refused_by_its_key(tmp_path: Path, values: dict[str, Any], said: str) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(yaml.safe_dump({"models": ["a.onnx"], "output": "out"} | values))
    with pytest.raises(UsageError) as caught:
        load_manifest(path)
    assert str(caught.value).startswith(f"{path}: {said}")
    with pytest.raises(UsageError, match="a web server takes no files"):
        store_of("https://h/out")


def test_single_commands_say_that_a_url_is_none_of_their_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = HANDMADE["resnet_block"]().model
    with pytest.raises(ModelError, match=r"the model https://h/net\.onnx is remote"):
        load_model(Path("https://h/net.onnx"))
    with pytest.raises(CalibrationError, match=r"calibration data https://h/x\.npz is remote"):
        calibrate(model, "https://h/x.npz")
    with pytest.raises(UsageError, match=r"preset https://h/p\.yaml is remote"):
        calibrate(model, "random", preset="https://h/p.yaml")
    monkeypatch.setattr(sys, "argv", ["onnxshot", "batch", "https://h/m.yaml"])
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err.startswith("error: the manifest https://h/m.yaml is remote (copy it here")


def test_a_recipe_may_be_remote_and_is_told_by_its_url(web: Site, tmp_path: Path) -> None:
    web.put("base.yaml", b"stages: [prune: {sparsity: 2}]")
    for extends in ("../base.yaml", "/base.yaml", "../../../base.yaml", f"{web.url}/base.yaml"):
        url = web.put("a/r.yaml", f"extends: {extends}\nstages: [quantize: {{}}]".encode())
        for given in (url, Path(url), url.replace("//", "//me:secret@")):  # a Path makes one slash of two
            with pytest.raises(UsageError) as caught:
                load_stages(given)
            assert caught.value.message == f"{web.url}/base.yaml: stages[0].prune.sparsity is 2"
    url = web.put("a/r.yaml", b"extends: none.yaml")
    with pytest.raises(UsageError) as caught:
        load_stages(url)
    assert caught.value.message == f"{url}: extends is 'none.yaml': {web.url}/a/none.yaml is not there"
    (tmp_path / "m.yaml").write_text(yaml.safe_dump({"models": [{"model": "a.onnx", "recipe": url}], "output": "out"}))
    with pytest.raises(UsageError) as caught:
        load_manifest(tmp_path / "m.yaml")
    assert caught.value.message.startswith(f"{tmp_path / 'm.yaml'}: models[0].recipe is '{url}': {url}: extends is")
    with pytest.raises(UsageError, match=r"extends itself: r\.yaml -> r\.yaml"):
        load_stages(web.put("a/r.yaml", b"extends: ../a/r.yaml"))


def test_without_aiohttp_the_extra_is_named(web: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(TargetError, match=r"a\.onnx needs aiohttp: .*pip install 'onnxshot\[remote\]'"):
        local_copy(f"{web.url}/a.onnx")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_https_asks_for_a_certificate_that_is_trusted(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    made += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(made, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    code = "import sys; from onnxshot.remote.copies import local_copy; print(open(local_copy(sys.argv[1])).read())"
    with site(context) as web:
        url = web.put("a.bin", b"content")
        environment = {
            "ONNXSHOT_CACHE": str(tmp_path / "cache"),
            "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": ":".join(sys.path),
        }
        for trusted in ({"SSL_CERT_FILE": str(certificate)}, {}):
            done = subprocess.run(
                [sys.executable, "-c", code, url], env=environment | trusted, capture_output=True, text=True
            )
            assert (done.stdout == "content\n") == bool(trusted), done.stderr
    assert "a.bin cannot be reached: " in done.stderr
    assert "CERTIFICATE_VERIFY_FAILED" in done.stderr.splitlines()[-1]
