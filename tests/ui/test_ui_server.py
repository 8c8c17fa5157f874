"""The local page's server: who is let in, what is taken, one job at a time, and the same bytes as the command line."""

import base64
import io
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
from fixture_data import fixture
from ui_server import TOKEN, Client, served

import onnxshot
from onnxshot.report.report import Report
from onnxshot.report.values import Artifact
from onnxshot.ui import jobs, machine, server, uploads, worker

LIMIT = 4_000_000
DIGITS = fixture("data/digits/calib")
PRESET = fixture("data/digits/preset.yaml")
MODEL = fixture("digits_mobile")


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where jobs have their folders."""
    folder = tmp_path_factory.mktemp("around") / "jobs"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder))
        patch.setattr(jobs, "_PAUSE_SECONDS", 0.0)  # a test begins where the one before has left off
        yield folder


@pytest.fixture(scope="module")
def client(temporary: Path) -> Iterator[Client]:
    with served(LIMIT) as found:
        yield found


@pytest.fixture
def key(client: Client) -> str:
    return client.begin()


def zipped(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return made.getvalue()


def digits(count: int) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(DIGITS.iterdir())[:count]}


def uploaded(client: Client, samples: int = 16) -> str:
    """A job that only needs to be started."""
    key = client.begin()
    for kind, name, body in (
        ("model", "net.onnx", MODEL.read_bytes()),
        ("calib", "digits.zip", zipped({f"digits/{name}": data for name, data in digits(samples).items()})),
        ("preset", "preset.yaml", PRESET.read_bytes()),
    ):
        status, told = client.put(key, kind, name, body)
        assert status == 200, told
    return key


def test_without_the_secret_nothing_is_there(client: Client) -> None:
    for path in ("/", "/choices", "/wrong/", "/wrong/choices", f"/{TOKEN}x/", "/jobs/current"):
        assert client.raw("GET", path)[0] == 404
    assert client.raw("POST", "/jobs")[0] == 404
    assert client.raw("GET", f"/{TOKEN}/")[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "192.168.0.1:80", ""])
def test_only_the_names_of_this_machine_are_served(client: Client, host: str) -> None:
    """A site whose name is made to point to this machine sends that name: DNS rebinding."""
    assert client.raw("GET", f"/{TOKEN}/", Host=host)[0] == 400
    assert client.raw("GET", f"/{TOKEN}/", Host="localhost:8000")[0] == 200


def test_no_other_machine_can_connect(client: Client) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing: asks for the address that would be used
        own = probe.getsockname()[0]
    if own.startswith("127."):
        pytest.skip("this machine has no other address")
    with pytest.raises(OSError):
        socket.create_connection((own, client.port), timeout=2)


def test_the_page_loads_nothing_from_elsewhere(client: Client) -> None:
    for name in server._SHIPPED:
        status, text, headers = client.raw("GET", f"/{TOKEN}/{name}")
        assert status == 200
        assert b"http:" not in text
        assert b"https:" not in text
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize(
    "name",
    ["../net.onnx", "a\\b.onnx", ".hidden", "c:net.onnx", "n\0.onnx", "x" * 300, "a\nb", "..", "a/../../net.onnx",
     "/net.onnx", "a//net.onnx", "a/", "a/./net.onnx", "a/.hidden/net.onnx", "/".join("a" * 17)],
)  # fmt: skip
def test_names_that_lead_elsewhere_are_refused(client: Client, key: str, temporary: Path, name: str) -> None:
    before = sorted(path.name for path in temporary.iterdir())
    status, told = client.put(key, "model", name, b"x")
    assert status in (400, 404), told
    (folder,) = temporary.glob("*/work")
    assert [path for path in folder.rglob("*") if path.is_file()] == []
    assert sorted(path.name for path in temporary.iterdir()) == before


def test_a_file_of_no_kind_or_given_twice_is_refused(client: Client, key: str) -> None:
    assert client.put(key, "out", "net.onnx", b"x")[0] == 404
    assert client.put(key, "model", "net.onnx", b"x")[0] == 200
    assert client.put(key, "model", "net.onnx", b"y")[0] == 409
    status, told = client.put(key, "model", "net.onnx/weights.bin", b"y")
    assert (status, told["error"]) == (409, "net.onnx/weights.bin lies below a file (give that or this one)")


def test_more_than_the_limit_is_refused_while_it_comes(client: Client, key: str, temporary: Path) -> None:
    """Chunks without a stated length: what is counted is what came."""
    came = 0

    def endless() -> Iterator[bytes]:
        nonlocal came
        while came < 50 * LIMIT:
            came += 100_000
            yield bytes(100_000)

    try:
        status, told = client.put(key, "model", "net.onnx", endless())
    except (BrokenPipeError, ConnectionResetError):
        pass  # the server hung up before all was sent, which is as good
    else:
        assert status == 413, told
        assert "--max-upload" in told["error"]
    assert came < 50 * LIMIT
    (folder,) = temporary.glob("*/work")
    assert [path for path in folder.rglob("*") if path.is_file()] == []
    _, told = client("GET", f"jobs/{key}")
    assert told["state"] == "failed"


def test_the_limit_is_of_all_files_together(client: Client, key: str) -> None:
    assert client.put(key, "model", "a.onnx", bytes(LIMIT - 10))[0] == 200
    status, told = client.put(key, "calib", "b.npz", bytes(11))
    assert status == 413
    assert "larger than 4.0 MB" in told["error"]


def test_an_archive_is_unpacked_without_what_an_operating_system_adds(
    client: Client, key: str, temporary: Path
) -> None:
    archive = zipped({"a/1.png": b"1", "2.png": b"2", "__MACOSX/a/._1.png": b"-", ".DS_Store": b"-", "a/._x": b"-"})
    assert client.put(key, "calib", "x.ZIP", archive)[0] == 200
    (folder,) = temporary.glob("*/work")
    found = {str(p.relative_to(folder / "calib")): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert found == {"a/1.png": b"1", "2.png": b"2"}


def link() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        entry = zipfile.ZipInfo("link.png")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")
    return made.getvalue()


def encrypted() -> bytes:
    made = bytearray(zipped({"a.png": b"a"}))
    for signature, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # APPNOTE 4.4.4: bit 0 of the flags
        made[made.index(signature) + at] |= 1
    return bytes(made)


ARCHIVES = {
    "parent": (zipped({"../evil.png": b"x"}), "outside"),
    "deep parent": (zipped({"a/../../evil.png": b"x"}), "outside"),
    "absolute": (zipped({"/tmp/evil.png": b"x"}), "outside"),
    "drive": (zipped({"C:/evil.png": b"x"}), "plain file name"),
    "link": (link(), "no plain file"),
    "bomb": (zipped({"a.npy": bytes(20 * LIMIT)}), "unpacks to 80.0 MB"),
    "twice": (zipped({"a.png": b"x", "A.png": b"x"})[:-1], "cannot be unpacked"),
    "encrypted": (encrypted(), "encrypted"),
    "no zip": (b"hello", "cannot be unpacked"),
    "empty": (b"", "cannot be unpacked"),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_archives_that_harm_are_refused(client: Client, key: str, temporary: Path, kind: str) -> None:
    archive, why = ARCHIVES[kind]
    status, told = client.put(key, "calib", "samples.zip", archive)
    assert status in (400, 413)
    assert why in told["error"]
    (folder,) = temporary.glob("*/work")
    assert [path for path in folder.rglob("*") if path.is_file()] == []
    assert not list(temporary.parent.rglob("evil*"))


def test_archives_that_come_at_once_have_the_room_of_one(
    client: Client, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each unpacks to more than half of what a job may have; they are unpacked at the same moment."""
    both = threading.Barrier(2, timeout=30)
    check = uploads._check

    def checked(*args: Any) -> None:
        check(*args)
        both.wait()

    monkeypatch.setattr(uploads, "_check", checked)
    archives = {name: zipped({f"{name}.npy": bytes(6 * LIMIT // 10)}) for name in ("a", "b")}
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda name: client.put(key, "calib", f"{name}.zip", archives[name]), archives))
    assert sorted(status for status, _ in answers) == [200, 413], answers
    assert "in all" in next(told["error"] for status, told in answers if status == 413)


@pytest.mark.parametrize("name", ["%C3%A9", "%FF", "%00", "a" * 3000])
def test_a_key_that_is_none_is_not_found(client: Client, name: str) -> None:
    assert client("GET", f"jobs/{name}")[0] == 404
    assert client("DELETE", f"jobs/{name}")[0] == 404
    assert client("PUT", f"jobs/{name}/files/calib/a.npz", b"x")[0] == 404


def test_an_archive_that_states_too_small_a_size_writes_no_more_than_that(client: Client, key: str) -> None:
    archive = bytearray(zipped({"a.npy": bytes(3 * LIMIT)}))
    for signature, at in ((b"PK\3\4", 22), (b"PK\1\2", 24)):  # APPNOTE 4.3.7 and 4.3.12: uncompressed size
        place = archive.index(signature) + at
        archive[place : place + 4] = (1000).to_bytes(4, "little")
    status, told = client.put(key, "calib", "samples.zip", bytes(archive))
    assert status == 400, told
    assert "cannot be unpacked" in told["error"]


def test_a_run_needs_a_model_and_samples(client: Client, key: str) -> None:
    assert "0 .onnx files" in client.start(key)[1]["error"]
    client.put(key, "model", "a.onnx", b"x")
    assert "no calibration files" in client.start(key)[1]["error"]
    client.put(key, "calib", "a.npz", b"x")
    assert "not exactly one .yaml file" in client.start(key, preset="file")[1]["error"]
    client.put(key, "model", "b.onnx", b"x")
    assert "2 .onnx files" in client.start(key)[1]["error"]


@pytest.mark.parametrize(
    "asked",
    [{"target": "/etc/passwd"}, {"preset": "/etc/p.yaml"}, {"preset": ["none"]}, {"level": "0.5"}, {"level": 1.1},
     {"level": True}, {"level": None}, {"level": float("nan")}, {"effort": "bst"}, {"output": "/tmp/x"},
     {"search_seconds": -1}, {"search_seconds": "30"}, {"search_seconds": float("inf")}, {"search_seconds": True},
     {"accept": 1}, {"accept": "yes"}, {"min_sqnr": "30"}, {"min_agreement": 95}, {"max_size": -1},
     {"max_latency": float("nan")}, {"target": "openvino", "min_sqnr": 30}],
)  # fmt: skip
def test_a_run_takes_what_the_page_offers_and_nothing_else(client: Client, key: str, asked: dict[str, object]) -> None:
    status, told = client.start(key, **asked)
    assert status == 400
    assert "error" in told


@pytest.mark.parametrize("body", [b"", b"[1]", b"{", b"\xff", b"[" * 9000, b" " * 20_000])
def test_what_is_no_request_is_refused(client: Client, key: str, body: bytes) -> None:
    assert client("POST", f"jobs/{key}/run", body)[0] in (400, 413)


def test_the_command_line_replays_the_result_to_the_same_bytes(client: Client, tmp_path: Path) -> None:
    key = uploaded(client)
    status, told = client.start(key, preset="file")
    assert (status, told["state"]) == (200, "running"), told
    told = client.ended(key)
    assert told["state"] == "done", told
    names = [output["name"] for output in told["outputs"]]
    assert names == ["net.int8.onnx", "net.int8.recipe.yaml"]

    (tmp_path / "calib").mkdir()
    for name, data in digits(16).items():
        (tmp_path / "calib" / name).write_bytes(data)
    status, made, headers = client.raw("GET", f"/{TOKEN}/jobs/{key}/outputs/net.int8.onnx")
    assert status == 200
    assert "attachment" in headers["content-disposition"]
    # Not a second run of quantize: what is placed by measured time may differ.
    (tmp_path / "net.int8.onnx").write_bytes(made)
    command = [sys.executable, "-m", "onnxshot", "replay", str(MODEL), str(tmp_path / "net.int8.onnx")]
    options = ["--calib", str(tmp_path / "calib"), "--preset", str(PRESET), "-o", str(tmp_path / "net.onnx")]
    subprocess.run([*command, *options], check=True, capture_output=True)
    assert made == (tmp_path / "net.onnx").read_bytes()

    _, report = client("GET", f"jobs/{key}/outputs/report.json")
    assert report["outputs"][0]["bytes"] == len(made)
    assert report["sqnr_db"] > 20
    assert tempfile.gettempdir() not in json.dumps(report)  # where the job's folder was
    for name in ("nothing.onnx", "..%2freport.json", "%2e%2e"):
        assert client.raw("GET", f"/{TOKEN}/jobs/{key}/outputs/{name}")[0] in (400, 404)


def test_a_goal_is_searched_for_and_what_is_missed_is_told(client: Client) -> None:
    key = uploaded(client)
    client.start(key, preset="file", effort="fast", min_sqnr=45, min_agreement=1)
    told = client.ended(key)
    assert told["error"] == ""
    assert (told["asked"]["model"], told["asked"]["min_sqnr"]) == ("net.onnx", 45)
    _, report = client("GET", f"jobs/{key}/outputs/report.json")
    assert report["recipe"]["effort"] == "fast"
    assert report["goal"]["min_sqnr"] == 45
    # On a busy machine a result with little int8 may be no faster, and then it is the float model in effect.
    of_the_goal = [text for text in told["missed"] if "SQNR" in text or "only the float model" in text]
    assert report["goal"]["reached"] is not bool(of_the_goal)


def test_goals_are_checked_at_the_end_where_none_is_searched_for() -> None:
    def missed(**goals: float) -> list[str]:
        written = Artifact("net.small.onnx", "ort", "onnx", 2_000_000)
        report = Report("net.onnx", {}, [written], sqnr_db=20.0, agreement=0.9, latency={"ms": 2.0})
        return worker.missed({"goals": goals, "searched": {}}, report)

    assert missed(min_sqnr=20, max_size=2, max_latency=2, min_agreement=0.9) == []
    assert missed(min_sqnr=21) == ["the least SQNR is 21 dB, found 20 dB"]
    assert missed(max_size=1, max_latency=1) == [
        "the largest size is 1 MB, found 2 MB", "the longest run is 1 ms, found 2 ms"
    ]  # fmt: skip
    assert missed(min_agreement=0.95) == ["agreement is 90.0 %, and 95 % was the goal"]


def test_a_level_above_0_makes_zeros(client: Client) -> None:
    key = uploaded(client)
    client.start(key, preset="file", level=0.5, search_seconds=0, accept=True)
    told = client.ended(key)
    assert told["outputs"][0]["name"] == "net.small.onnx", told
    _, report = client("GET", f"jobs/{key}/outputs/report.json")
    assert 0.25 < report["sparsity"] < 0.45
    assert report["accepted"] is True


def test_a_run_has_the_settings_that_were_asked_for() -> None:
    job = {"memory": "1 GB", "search_seconds": 0, "accept": True, "target": "ort"}
    found = worker.settings_of(job, lambda *_: None)
    assert (found.memory, found.search_seconds, found.accept) == ("1 GB", 0, True)


def test_the_page_is_told_what_fits_and_what_cannot_be_proved(client: Client) -> None:
    _, told = client("GET", "choices")
    assert set(told["about"]) | {"none", "file"} == set(told["preset"])
    assert told["unproven"].keys() == set(told["target"])
    graph = base64.b64encode(b"").decode()
    asked = {"graph": graph, "beside": {".onnx": 1}, "samples": {".png": 3}}
    status, found = client("POST", "guess", json.dumps(asked))
    assert (status, found["preset"]) == (200, "none")
    for bad in (b"[1]", b"{}x", b'{"graph": "?"}', b'{"samples": {".png": "3"}}', b'{"beside": [1]}', b" " * 5_000_000):
        assert client("POST", "guess", bad)[0] in (400, 413)


@pytest.mark.parametrize(
    ("target", "modules", "gpus", "blocked", "said"),
    [("openvino", set(), (), True, "OpenVINO is not installed (pip install 'onnxshot[openvino]')"),
     ("openvino", {"openvino"}, (), False, ""), ("tensorrt", {"tensorrt"}, (), False, "there is no NVIDIA GPU"),
     ("tensorrt", {"tensorrt_rtx"}, ("H200",), False, ""),
     ("tensorrt", set(), ("H200",), False, "TensorRT is not installed"),
     ("portable", {"openvino"}, (), False, "TensorRT is not installed"), ("ort-avx2", set(), (), False, "")],
)  # fmt: skip
def test_what_this_machine_cannot_prove(
    monkeypatch: pytest.MonkeyPatch, target: str, modules: set[str], gpus: tuple[str, ...], blocked: bool, said: str
) -> None:
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: name if name in modules else None)
    monkeypatch.setattr(machine, "gpus", lambda: gpus)
    found = machine.unproven.__wrapped__()[target]
    assert found.blocked is blocked
    assert said in found.text
    assert bool(said) is bool(found.text)


def test_a_model_whose_weights_lie_beside_it_is_read(client: Client, key: str, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(MODEL)
    onnx.save(model, tmp_path / "net.onnx", save_as_external_data=True, location="net.onnx.data", size_threshold=100)
    for path in sorted(tmp_path.iterdir()):
        assert client.put(key, "model", path.name, path.read_bytes())[0] == 200
    client.put(key, "calib", "digits.zip", zipped(digits(8)))
    client.put(key, "preset", "p.yaml", PRESET.read_bytes())
    client.start(key, preset="file")
    assert client.ended(key)["error"] == ""


def test_folders_of_a_model_with_weights_in_a_subfolder_and_of_samples(
    client: Client, key: str, tmp_path: Path
) -> None:
    import onnx

    (tmp_path / "net" / "weights").mkdir(parents=True)
    made, weights = tmp_path / "net" / "net.onnx", "weights/net.bin"
    onnx.save(onnx.load(MODEL), made, save_as_external_data=True, location=weights, size_threshold=100)
    for path in (made, tmp_path / "net" / weights):
        assert client.put(key, "model", str(path.relative_to(tmp_path)), path.read_bytes())[0] == 200
    for name, data in digits(8).items():
        assert client.put(key, "calib", f"data/digits/{name}", data)[0] == 200
    client.put(key, "preset", "p.yaml", PRESET.read_bytes())
    client.start(key, preset="file")
    told = client.ended(key)
    assert told["error"] == ""
    assert told["outputs"][0]["name"] == "net.int8.onnx"
    _, report = client("GET", f"jobs/{key}/outputs/report.json")
    assert report["sqnr_db"] > 20
    assert report["input"] == "model/net/net.onnx"


def test_what_is_wrong_with_the_files_is_told_in_a_line(client: Client, key: str) -> None:
    client.put(key, "model", "net.onnx", b"hello")
    client.put(key, "calib", "a.npz", b"x")
    assert client.start(key)[0] == 200
    told = client.ended(key)
    assert told["state"] == "failed"
    assert told["error"].startswith("net.onnx ")
    assert "Traceback" not in told["error"]


def running(client: Client) -> str:
    """A job that takes long."""
    key = uploaded(client, 200)
    status, told = client.start(key, preset="file", level=1)
    assert status == 200, told
    client.until(key, lambda told: told["step"])
    return key


def worker_of(folder: Path) -> int:
    """The process that works in this folder."""
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                if (process / "cwd").resolve() == folder.resolve():
                    return int(process.name)
            except OSError:
                continue
    raise AssertionError("there is no worker")


@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="processes are looked up in /proc")
def test_one_job_at_a_time_and_a_cancel_ends_it(client: Client, temporary: Path) -> None:
    key = running(client)
    status, told = client("POST", "jobs")
    assert status == 409
    assert "a job is running" in told["error"]
    assert client.start(key)[0] == 409
    assert client.put(key, "calib", "more.npz", b"x")[0] == 409
    (folder,) = temporary.glob("*/work")
    worker = worker_of(folder)
    told_to = Path(f"/proc/{worker}/environ").read_bytes().split(b"\0")
    assert f"TMPDIR={folder / 'tmp'}".encode() in told_to, "what it has put aside would stay"
    assert client("DELETE", f"jobs/{key}") == (200, {"state": "none"})
    assert not Path(f"/proc/{worker}").exists()
    assert list(temporary.iterdir()) == []
    assert client("GET", f"jobs/{key}")[0] == 404
    assert client("GET", "jobs/current") == (200, {"state": "none"})
    assert client("POST", "jobs")[0] == 200


@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="processes are looked up in /proc")
def test_a_worker_that_crashes_leaves_the_page_alive(client: Client, temporary: Path) -> None:
    key = running(client)
    (folder,) = temporary.glob("*/work")
    os.kill(worker_of(folder), signal.SIGKILL)
    told = client.ended(key)
    assert told["state"] == "failed"
    assert "signal 9" in told["error"]
    assert client("POST", "jobs")[0] == 200


def test_the_next_job_and_the_end_remove_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with served(LIMIT) as client:
        first = client.begin()
        client.put(first, "model", "net.onnx", b"x")
        monkeypatch.setattr(jobs, "_PAUSE_SECONDS", 60.0)
        status, told = client("POST", "jobs")
        assert (status, told["message"]) == (409, "files of another run are being sent")
        monkeypatch.setattr(jobs, "_PAUSE_SECONDS", 0.0)  # no file has come for that long: the page was left
        second = client.begin()
        assert len(list(tmp_path.iterdir())) == 1
        status, told = client.put(first, "calib", "a.npz", b"x")
        assert status == 404
        assert "another job was begun" in told["error"]
        assert client.put(second, "calib", "a.npz", b"x")[0] == 200
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_the_command_ends_clean_when_told_to(tmp_path: Path, sign: signal.Signals) -> None:
    command = [sys.executable, "-m", "onnxshot", "ui", "--no-open", "--json"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        url = json.loads(process.stdout.readline())["url"]
        _, _, where, token, _ = url.split("/")
        assert len(token) >= 32
        client = Client(int(where.split(":")[1]))
        for _ in range(600):
            if client.raw("POST", f"/{token}/jobs")[0] == 200:
                break
            time.sleep(0.05)
        assert len(list(tmp_path.iterdir())) == 1
        process.send_signal(sign)
        process.wait(30)
        said = process.stderr.read()
    assert (process.returncode, said) == {
        signal.SIGINT: (0, b""), signal.SIGTERM: (143, b"error: stopped by SIGTERM; nothing is half written\n"),
    }[sign]  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_the_missing_extra_is_named(tmp_path: Path) -> None:
    (tmp_path / "starlette.py").write_text("raise ModuleNotFoundError('gone', name='starlette')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from onnxshot.cli.app import entry; entry()"
    done = subprocess.run([sys.executable, "-c", code, "ui"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: the page needs starlette, which is not installed (pip install 'onnxshot[ui]')\n"


def test_a_port_that_is_taken_is_named(client: Client) -> None:
    from onnxshot.ui.server import listen

    with pytest.raises(onnxshot.errors.UsageError, match=rf"port {client.port}.*--port 0"):
        listen(client.port)
