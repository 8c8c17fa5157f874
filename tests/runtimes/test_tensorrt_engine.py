"""Buffers and copies of a running engine, with stand-ins for TensorRT and CUDA that use host memory."""

import ctypes
import enum
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from onnxshot.errors import ModelError, TargetError
from onnxshot.runtimes.tensorrt_engine import Engine, missing

FAKES = Path(__file__).parents[1] / "helpers" / "fakes"


class Memory:
    """Memory in use and all allocations, as counted by both CUDA modules."""

    def __init__(self) -> None:
        self.held: dict[int, Any] = {}
        self.sizes: list[int] = []

    def allocate(self, size: int) -> int:
        block = ctypes.create_string_buffer(size)
        self.held[ctypes.addressof(block)] = block
        self.sizes.append(size)
        return ctypes.addressof(block)


class Status(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInsufficientDriver = 35


def bindings(memory: Memory, devices: int = 1, status: Status = Status.cudaSuccess) -> ModuleType:
    """cuda.bindings.runtime: every function returns a status and its results."""
    module = ModuleType("cuda.bindings.runtime")

    def copy(to: int, source: int, size: int, kind: int, stream: int) -> tuple[Status]:
        assert (to in memory.held) == (kind == 1)
        assert (source in memory.held) == (kind == 2)
        ctypes.memmove(to, source, size)
        return (Status.cudaSuccess,)

    def free(address: int) -> tuple[Status]:
        del memory.held[address]
        return (Status.cudaSuccess,)

    vars(module).update(
        cudaGetDeviceCount=lambda: (status, devices),
        cudaStreamCreate=lambda: (Status.cudaSuccess, 7),
        cudaStreamSynchronize=lambda stream: (Status.cudaSuccess,),
        cudaMalloc=lambda size: (Status.cudaSuccess, memory.allocate(size)),
        cudaFree=free,
        cudaMemcpyAsync=copy,
        cudaMemcpyKind=SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2),
    )
    return module


def pycuda(memory: Memory) -> ModuleType:
    """pycuda.driver: objects that free their memory, copies between arrays and addresses."""
    module = ModuleType("pycuda.driver")

    class Allocation:
        def __init__(self, size: int) -> None:
            self.address = memory.allocate(size)

        def __int__(self) -> int:
            return self.address

        def free(self) -> None:
            del memory.held[self.address]

    class Device:
        def __init__(self, index: int) -> None:
            assert index == 0

        @staticmethod
        def count() -> int:
            return 1

        def retain_primary_context(self) -> Any:
            return SimpleNamespace(push=lambda: None)

    vars(module).update(
        init=lambda: None,
        Device=Device,
        Stream=lambda: SimpleNamespace(handle=7, synchronize=lambda: None),
        mem_alloc=Allocation,
        memcpy_htod_async=lambda to, array, stream: ctypes.memmove(to, array.ctypes.data, array.nbytes),
        memcpy_dtoh_async=lambda array, source, stream: ctypes.memmove(array.ctypes.data, source, array.nbytes),
    )
    return module


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Memory]:
    monkeypatch.syspath_prepend(FAKES)
    sys.modules.pop("tensorrt", None)
    yield Memory()
    sys.modules.pop("tensorrt", None)


@pytest.fixture(params=["cuda.bindings.runtime", "pycuda.driver"])
def engine(request: pytest.FixtureRequest, memory: Memory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Engine:
    made = {"cuda.bindings.runtime": bindings, "pycuda.driver": pycuda}
    for name in made:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, request.param, made[request.param](memory))
    for parent in ("cuda", "cuda.bindings", "pycuda"):
        monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    (tmp_path / "net.engine").write_bytes(b"engine")
    return Engine(tmp_path / "net.engine")


def test_outputs_come_back_and_memory_is_made_anew_only_where_a_tensor_grows(engine: Engine, memory: Memory) -> None:
    rng = np.random.default_rng(0)
    for rows in (2, 1, 4, 3):
        x = rng.normal(size=(rows, 3)).astype(np.float32)
        found = engine.run({"x": x, "more": x})
        assert list(found) == ["y"]
        np.testing.assert_array_equal(found["y"], 2 * x)
    assert memory.sizes == [24, 24, 48, 48]  # x and y of 2 rows, then of 4
    assert len(memory.held) == 2


def test_feeds_of_another_type_or_order_are_brought_into_the_engines(engine: Engine) -> None:
    x = np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3))
    np.testing.assert_array_equal(engine.run({"x": x})["y"], 2 * x)


def test_sizes_out_of_range_and_missing_inputs_are_named(engine: Engine) -> None:
    with pytest.raises(ModelError, match=r"'x' has sizes \(5, 3\); it takes \(1, 3\) to \(4, 3\)"):
        engine.run({"x": np.zeros((5, 3), np.float32)})
    with pytest.raises(ModelError, match="asks for input 'x'"):
        engine.run({"z": np.zeros(3, np.float32)})


def test_an_engine_of_elsewhere_is_refused(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "net.engine").write_bytes(b"another")
    with pytest.raises(ModelError, match=r"does not load in tensorrt 10\.9\.0"):
        Engine(tmp_path / "net.engine")


def test_why_no_engine_runs_here(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cuda", "cuda.bindings", "cuda.bindings.runtime", "pycuda", "pycuda.driver"):
        monkeypatch.setitem(sys.modules, name, None)
    assert "neither cuda-bindings nor pycuda" in missing()
    assert "onnxshot[cuda]" in missing()
    for parent in ("cuda", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    for made, words in (
        (bindings(memory, status=Status.cudaErrorInsufficientDriver), "cudaErrorInsufficientDriver"),
        (bindings(memory, devices=0), "no GPU here"),
    ):
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", made)
        assert words in missing()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", bindings(memory))
    assert missing() == ""


def test_without_a_gpu_loading_is_a_target_error(
    memory: Memory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("cuda.bindings.runtime", "pycuda.driver"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(TargetError):
        Engine(tmp_path / "net.engine")
