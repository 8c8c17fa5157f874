"""Buffers and copies of a running engine, with stand-ins for TensorRT and CUDA that use host memory."""

import ctypes
import enum
import gc
import importlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from onnxshot.errors import ModelError, TargetError
from onnxshot.runtimes.tensorrt_engine import Engine, missing
from onnxshot.runtimes.tensorrt_runtime import TensorRt

FAKES = Path(__file__).parents[1] / "helpers" / "fakes"


class Memory:
    """Memory in use and all allocations, as counted by both CUDA modules, and the context of each thread."""

    def __init__(self) -> None:
        self.held: dict[int, Any] = {}
        self.sizes: list[int] = []
        self.contexts: dict[int, int] = {}
        self.most = sys.maxsize

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
        cudaEventCreate=lambda: (Status.cudaSuccess, []),
        cudaEventRecord=lambda event, stream: event.append(stream) or (Status.cudaSuccess,),
        cudaEventElapsedTime=lambda start, end: (Status.cudaSuccess, 0.5 * (start == end and start[-1] == 7)),
        cudaMemcpyKind=SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2),
    )
    return module


def pycuda(memory: Memory) -> ModuleType:
    """pycuda.driver: objects that free their memory, copies between buffers and addresses, a stack of contexts."""
    module: Any = ModuleType("pycuda.driver")

    class Error(Exception):
        pass

    def active() -> None:
        if not memory.contexts.get(threading.get_ident()):
            raise Error("invalid device context")

    class Allocation:
        def __init__(self, size: int) -> None:
            active()
            if size > memory.most:
                raise Error("cuMemAlloc failed: out of memory")
            self.address = memory.allocate(size)

        def __int__(self) -> int:
            return self.address

        def free(self) -> None:
            active()
            del memory.held[self.address]

    class Context:
        def push(self) -> None:
            memory.contexts[threading.get_ident()] = memory.contexts.get(threading.get_ident(), 0) + 1

        @staticmethod
        def pop() -> None:
            active()
            memory.contexts[threading.get_ident()] -= 1

    class Device:
        def __init__(self, index: int) -> None:
            assert index == 0

        @staticmethod
        def count() -> int:
            return 1

        def retain_primary_context(self) -> Context:
            return Context()

    class Event:
        def record(self, stream: Any) -> None:
            active()
            self.stream = stream.handle

        def time_till(self, other: "Event") -> float:
            return 0.5 * (self.stream == other.stream == 7)

    class Stream:
        handle = 7

        def __init__(self) -> None:
            active()

        def synchronize(self) -> None:
            active()

    def copy(to: int, source: int, size: int) -> None:
        active()
        ctypes.memmove(to, source, size)

    def address(buffer: Any) -> tuple[int, int]:
        view = memoryview(buffer)
        assert view.c_contiguous
        return np.asarray(view).ctypes.data, view.nbytes

    def up(to: int, buffer: Any, stream: Stream) -> None:
        source, size = address(buffer)
        copy(to, source, size)

    def down(buffer: Any, source: int, stream: Stream) -> None:
        to, size = address(buffer)
        copy(to, source, size)

    vars(module).update(
        init=lambda: None, Error=Error, Device=Device, Stream=Stream, Event=Event, mem_alloc=Allocation,
        memcpy_htod_async=up, memcpy_dtoh_async=down,
    )  # fmt: skip
    return module  # type: ignore[no-any-return]


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Memory]:
    monkeypatch.syspath_prepend(FAKES)
    sys.modules.pop("tensorrt", None)
    yield Memory()
    sys.modules.pop("tensorrt", None)


MADE = {"cuda.bindings.runtime": bindings, "pycuda.driver": pycuda}


def install(monkeypatch: pytest.MonkeyPatch, memory: Memory, *names: str) -> None:
    """Make these modules importable, and the others of MADE not."""
    for name in MADE:
        monkeypatch.setitem(sys.modules, name, MADE[name](memory) if name in names else None)
    for parent in ("cuda", "cuda.bindings", "pycuda"):
        monkeypatch.setitem(sys.modules, parent, ModuleType(parent))


@pytest.fixture(params=MADE)
def engine(request: pytest.FixtureRequest, memory: Memory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Engine:
    install(monkeypatch, memory, request.param)
    (tmp_path / "net.engine").write_bytes(b"engine")
    return Engine(tmp_path / "net.engine")


@pytest.mark.parametrize(
    ("installed", "package"), [(tuple(MADE), "pycuda"), (("cuda.bindings.runtime",), "cuda-bindings")]
)
def test_engines_run_through_pycuda_where_it_is_installed(
    installed: tuple[str, ...], package: str, memory: Memory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, memory, *installed)
    (tmp_path / "net.engine").write_bytes(b"engine")
    loaded = TensorRt().load(tmp_path / "net.engine", threads=1)
    x = np.ones((1, 3), np.float32)
    np.testing.assert_array_equal(loaded.run({"x": x})["y"], 2 * x)
    assert isinstance(loaded, Engine)
    assert loaded.package == package


def test_any_thread_may_run_an_engine_and_no_context_stays(memory: Memory, engine: Engine) -> None:
    """pycuda aborts a process that ends with a context on its stack."""
    rows: list[int] = []
    run = threading.Thread(target=lambda: rows.extend(engine.run({"x": np.ones((2, 3), np.float32)})["y"].shape))
    run.start()
    run.join()
    assert rows == [2, 3]
    assert not any(memory.contexts.values())


def test_memory_is_freed_with_the_engine(memory: Memory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "net.engine").write_bytes(b"engine")
    for name in MADE:
        install(monkeypatch, memory, name)
        Engine(tmp_path / "net.engine").run({"x": np.ones((2, 3), np.float32)})
        gc.collect()
        assert memory.sizes[-2:] == [24, 24]
        assert not memory.held


def test_times_of_engines_are_those_of_the_gpu(engine: Engine, tmp_path: Path) -> None:
    other = Engine(tmp_path / "net.engine")
    assert TensorRt().time_notes(engine, other) == []
    for one in (engine, other):
        one.run({"x": np.ones((1, 3), np.float32)})
    (note,) = TensorRt().time_notes(engine, other)
    assert note == (
        f"on the GPU alone, without copies: 0.5 ms for the float model, 0.5 ms (through {engine.package})"
    )


def test_errors_of_pycuda_are_ours_and_leave_no_context(
    memory: Memory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, memory, "pycuda.driver")
    (tmp_path / "net.engine").write_bytes(b"engine")
    engine, memory.most = Engine(tmp_path / "net.engine"), 24
    with pytest.raises(ModelError, match="CUDA fails: cuMemAlloc failed: out of memory"):
        engine.run({"x": np.ones((4, 3), np.float32)})
    assert not any(memory.contexts.values())


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
    assert "neither pycuda nor cuda-bindings" in missing()
    assert "onnxshot[pycuda]" in missing()
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
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)

    def without_driver(name: str) -> ModuleType:
        if name == "pycuda.driver":
            raise ImportError("libcuda.so.1: cannot open shared object file")
        return imported(name)

    imported = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", without_driver)
    assert "pycuda does not load: libcuda.so.1" in missing()


def test_without_a_gpu_loading_is_a_target_error(
    memory: Memory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("cuda.bindings.runtime", "pycuda.driver"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(TargetError):
        Engine(tmp_path / "net.engine")
