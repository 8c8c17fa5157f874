import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from array_statistics import observe
from fixture_data import fixture
from fixture_runs import data_of
from handmade import HANDMADE
from handmade.core import model, weight
from planned_models import FAST

from onnxshot.api.quantize import quantize
from onnxshot.calibration.statistics_file import Statistics
from onnxshot.execution import statistics_cache
from onnxshot.files import cache_folder
from onnxshot.graph.load import load_model
from onnxshot.settings import Settings

KEY = statistics_cache.key("k")
KEEPING = Settings(verify=False, threads=1)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ONNXSHOT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def some_stats(count: int = 3) -> Statistics:
    rng = np.random.default_rng(0)
    tensors = {f"t/{i}": observe(rng.normal(size=500).astype(np.float32)) for i in range(count)}
    return Statistics(tensors, "a" * 64, "b" * 64, ("c" * 64, "d" * 64), 5, ("odd",))


def test_stored_statistics_are_loaded_unchanged(folder: Path) -> None:
    statistics_cache.store(KEY, some_stats())
    assert statistics_cache.load(KEY) == some_stats()
    assert statistics_cache.load("other") is None
    assert [p.name for p in folder.iterdir()] == [f"{KEY}.npz"]


def test_accuracy_recovery_does_not_calibrate_twice(folder: Path) -> None:
    name, settings = "digits_mobile", replace(KEEPING, samples=16)
    runs = [quantize(fixture(name), **data_of(name), equalize=True, settings=settings) for _ in range(2)]
    first, second = (run.report.samples for run in runs)
    assert "channels were equalized" in runs[0].report.notes
    assert first["inferences"] == first["calibration"]
    assert second["inferences"] == 0
    assert runs[0].model.to_proto() == runs[1].model.to_proto()


def test_a_second_run_needs_no_inference(folder: Path) -> None:
    case = HANDMADE["resnet_block"]()
    first = quantize(case.model, case.feeds, settings=KEEPING)
    second = quantize(case.model, case.feeds, settings=KEEPING)
    assert first.report.samples["inferences"] == 6
    assert second.report.samples["inferences"] == 0
    assert second.model.to_proto() == first.model.to_proto()
    other = quantize(case.model, case.feeds, exclude=("c1",), method="minmax", settings=KEEPING)
    assert other.report.samples["inferences"] == 0, "other exclusions and methods need no inference"
    assert len(list(folder.glob("*.npz"))) == 1
    quantize(case.model, case.feeds, settings=FAST)
    assert len(list(folder.glob("*.npz"))) == 1


def test_hash_and_key_depend_on_weights_graph_and_every_part() -> None:
    def block(w: float = 1.0, op: str = "Relu") -> onnx.ModelProto:
        text = f"g (float[1, 4, 64] x) => (float[1, 4, 64] y) {{ h = MatMul(x, w) y = {op}(h) }}"
        return model(text, {"w": weight(64, 64) * np.float32(w)})

    plain = statistics_cache.model_hash(load_model(block()))
    assert plain == statistics_cache.model_hash(load_model(block()))
    others = [statistics_cache.model_hash(load_model(other)) for other in (block(1.5), block(op="Sigmoid"))]
    assert len({plain, *others}) == 3
    keys = {statistics_cache.key(*parts) for parts in (("a", "b"), ("b", "a"), ("ab", ""), ("a", "b", "c"))}
    assert len(keys) == 4


def test_the_hash_of_a_bfloat16_weight() -> None:
    text = "g (bfloat16[1, 64] x) => (bfloat16[1, 64] y) { y = MatMul(x, w) }"
    proto = model(text)
    proto.graph.initializer.append(onnx.helper.make_tensor("w", onnx.TensorProto.BFLOAT16, [64, 64], [1.0] * 4096))
    assert len(statistics_cache.model_hash(load_model(proto))) == 64


@pytest.mark.parametrize("damage", ["empty", "truncated", "garbage", "flipped", "other file"])
def test_a_damaged_file_is_a_miss(folder: Path, damage: str) -> None:
    statistics_cache.store(KEY, some_stats(40))
    path = folder / f"{KEY}.npz"
    whole = path.read_bytes()
    if damage == "flipped":
        for at in range(0, len(whole), 101):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
            assert statistics_cache.load(KEY) in (None, some_stats(40))
        return
    if damage == "other file":
        np.savez(path, names=np.zeros(3))
    else:
        path.write_bytes({"empty": b"", "truncated": whole[: len(whole) // 2], "garbage": b"PK\x03\x04" * 50}[damage])
    assert statistics_cache.load(KEY) is None
    statistics_cache.store(KEY, some_stats())
    assert statistics_cache.load(KEY) == some_stats()


def test_the_folder_stays_within_its_limit_and_drops_the_oldest(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(4):
        statistics_cache.store(statistics_cache.key(f"k{i}"), some_stats())
        os.utime(folder / f"{statistics_cache.key(f'k{i}')}.npz", (1000 + i, 1000 + i))
    statistics_cache.load(statistics_cache.key("k0"))  # used just now
    size = (folder / f"{statistics_cache.key('k0')}.npz").stat().st_size
    monkeypatch.setattr(statistics_cache, "MAX_BYTES", int(3.5 * size))
    statistics_cache.store(statistics_cache.key("k4"), some_stats())
    assert {p.stem for p in folder.iterdir()} == {statistics_cache.key(name) for name in ("k0", "k3", "k4")}


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ONNXSHOT_CACHE", str(tmp_path / "file" / "cache"))
    statistics_cache.store(KEY, some_stats())
    assert statistics_cache.load(KEY) is None


def test_a_write_that_fails_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    statistics_cache.store(KEY, some_stats())
    assert not folder.exists() or list(folder.iterdir()) == []


def test_the_folder_of_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONNXSHOT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder.folder() == Path("/somewhere/onnxshot")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder.folder() == Path.home() / ".cache" / "onnxshot"
