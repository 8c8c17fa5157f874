"""The first GPU for TensorRT's engines: memory, a stream and its times, by pycuda or, without it, by cuda-bindings."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onnxshot.errors import ModelError, TargetError
from onnxshot.graph.load import first_line

_INSTALL = "pip install 'onnxshot[pycuda]' or 'onnxshot[cuda]' (cuda-bindings, which needs no compiler)"
_DRIVER = "install NVIDIA's driver"


class Device(Protocol):
    """Memory of one GPU and a stream of work. Methods raise ModelError if CUDA reports an error.

    Attributes:
        package: The Python package that it works by.
        stream: Handle of the stream, as TensorRT takes it.
    """

    package: str
    stream: int

    def current(self) -> contextlib.AbstractContextManager[None]:
        """A block in which the calling thread works on this GPU. All other methods are called in such a block."""

    def allocate(self, size: int) -> int:
        """Allocate bytes, and return their address."""

    def free(self, address: int) -> None:
        """Free memory."""

    def upload(self, address: int, values: NDArray[Any]) -> None:
        """Copy an array in C order to the device, in order with other work of the stream."""

    def download(self, values: NDArray[Any], address: int) -> None:
        """Copy from the device into an array in C order, in order with other work of the stream."""

    def start(self) -> None:
        """Begin to take the time of the stream's work from here."""

    def stop(self) -> None:
        """End to take the time."""

    def wait(self) -> float:
        """Wait until all work of the stream is done; returns milliseconds between `start` and `stop` on the GPU."""


class PyCuda:
    """A GPU by pycuda. Raises TargetError if there is none."""

    package = "pycuda"

    def __init__(self) -> None:
        self._driver = importlib.import_module("pycuda.driver")
        try:
            self._driver.init()
            count = self._driver.Device.count()
        except self._driver.Error as e:
            raise TargetError(f"CUDA finds no GPU: {first_line(e)}", _DRIVER) from e
        if not count:
            raise TargetError("there is no GPU here")
        self._context = self._driver.Device(0).retain_primary_context()  # the one that TensorRT works in
        with self.current():
            self._stream = self._driver.Stream()
            self._events = self._driver.Event(), self._driver.Event()
        self.stream = int(self._stream.handle)
        self._held: dict[int, Any] = {}  # pycuda frees memory with its object

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """See Device. pycuda aborts the process at its end where a context was not popped."""
        self._context.push()
        try:
            yield
        except self._driver.Error as e:
            raise ModelError(f"CUDA fails: {first_line(e)}") from e
        finally:
            self._context.pop()

    def allocate(self, size: int) -> int:
        """See Device."""
        memory = self._driver.mem_alloc(size)
        self._held[int(memory)] = memory
        return int(memory)

    def free(self, address: int) -> None:
        """See Device."""
        self._held.pop(address).free()

    def upload(self, address: int, values: NDArray[Any]) -> None:
        """See Device."""
        self._driver.memcpy_htod_async(address, _bytes(values), self._stream)

    def download(self, values: NDArray[Any], address: int) -> None:
        """See Device."""
        self._driver.memcpy_dtoh_async(_bytes(values), address, self._stream)

    def start(self) -> None:
        """See Device."""
        self._events[0].record(self._stream)

    def stop(self) -> None:
        """See Device."""
        self._events[1].record(self._stream)

    def wait(self) -> float:
        """See Device."""
        self._stream.synchronize()
        return float(self._events[0].time_till(self._events[1]))


class CudaBindings:
    """A GPU by the runtime API of cuda-bindings. Raises TargetError if there is none."""

    package = "cuda-bindings"

    def __init__(self) -> None:
        self._cuda = importlib.import_module("cuda.bindings.runtime")
        try:
            if not self._call("cudaGetDeviceCount"):
                raise TargetError("there is no GPU here")
        except ModelError as e:
            raise TargetError(f"CUDA finds no GPU: {e.message}", _DRIVER) from e
        self.stream = int(self._call("cudaStreamCreate"))
        self._events = self._call("cudaEventCreate"), self._call("cudaEventCreate")

    def current(self) -> contextlib.AbstractContextManager[None]:
        """See Device. The runtime API takes the first GPU in every thread by itself."""
        return contextlib.nullcontext()

    def allocate(self, size: int) -> int:
        """See Device."""
        return int(self._call("cudaMalloc", size))

    def free(self, address: int) -> None:
        """See Device."""
        self._call("cudaFree", address)

    def upload(self, address: int, values: NDArray[Any]) -> None:
        """See Device."""
        self._copy(address, values.ctypes.data, values.nbytes, "cudaMemcpyHostToDevice")

    def download(self, values: NDArray[Any], address: int) -> None:
        """See Device."""
        self._copy(values.ctypes.data, address, values.nbytes, "cudaMemcpyDeviceToHost")

    def start(self) -> None:
        """See Device."""
        self._call("cudaEventRecord", self._events[0], self.stream)

    def stop(self) -> None:
        """See Device."""
        self._call("cudaEventRecord", self._events[1], self.stream)

    def wait(self) -> float:
        """See Device."""
        self._call("cudaStreamSynchronize", self.stream)
        return float(self._call("cudaEventElapsedTime", *self._events))

    def _copy(self, to: int, source: int, size: int, kind: str) -> None:
        self._call("cudaMemcpyAsync", to, source, size, getattr(self._cuda.cudaMemcpyKind, kind), self.stream)

    def _call(self, name: str, *args: Any) -> Any:
        """Call a CUDA function and return its first result; None if it has none.

        Raises ModelError on an error status.
        """
        try:
            status, *given = getattr(self._cuda, name)(*args)
        except RuntimeError as e:  # libraries of the driver are missing
            raise ModelError(f"{name}: {first_line(e)}") from e
        if int(status) != 0:
            raise ModelError(f"{name}: {getattr(status, 'name', status)}")
        return given[0] if given else None


def open_device() -> Device:
    """The first GPU, by pycuda where it is installed, else by cuda-bindings.

    Raises:
        TargetError: There is no GPU, or neither package is installed.
    """
    broken = []
    for kind in (PyCuda, CudaBindings):
        try:
            return kind()
        except ModuleNotFoundError:
            continue
        except ImportError as e:  # it is installed, but a library that it needs is not
            broken.append(f"{kind.package} does not load: {first_line(e)}")
    if broken:
        raise TargetError("; ".join(broken), _DRIVER)
    raise TargetError("there is no way to GPU memory here: neither pycuda nor cuda-bindings is installed", _INSTALL)


def _bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    """The bytes of an array in C order, as a view. pycuda reads buffers, which types such as bfloat16 are not."""
    return values.reshape(-1).view(np.uint8)
