"""Run a TensorRT engine on the first GPU, with device memory from cuda-bindings or pycuda."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onnxshot.errors import ModelError, TargetError
from onnxshot.graph.load import first_line
from onnxshot.runtimes import tensorrt_build
from onnxshot.runtimes.base import Feed

_INSTALL = "pip install 'onnxshot[cuda]' (cuda-bindings), or pycuda"


class Device(Protocol):
    """Memory of one GPU and a stream of work. Every method raises ModelError if CUDA reports an error."""

    stream: int

    def allocate(self, size: int) -> int:
        """Allocate bytes, and return their address."""

    def free(self, address: int) -> None:
        """Free memory."""

    def upload(self, address: int, values: NDArray[Any]) -> None:
        """Copy an array in C order to the device, in order with other work of the stream."""

    def download(self, values: NDArray[Any], address: int) -> None:
        """Copy from the device into an array in C order, in order with other work of the stream."""

    def wait(self) -> None:
        """Wait until all work of the stream is done."""


class CudaBindings:
    """Device memory by the runtime API of cuda-bindings. Raises TargetError if there is no GPU."""

    def __init__(self) -> None:
        self._cuda = importlib.import_module("cuda.bindings.runtime")
        try:
            if not self._call("cudaGetDeviceCount"):
                raise TargetError("there is no GPU here")
        except ModelError as e:
            raise TargetError(f"CUDA finds no GPU: {e.message}", "install NVIDIA's driver") from e
        self.stream = int(self._call("cudaStreamCreate"))

    def allocate(self, size: int) -> int:
        """Allocate bytes, and return their address."""
        return int(self._call("cudaMalloc", size))

    def free(self, address: int) -> None:
        """Free memory."""
        self._call("cudaFree", address)

    def upload(self, address: int, values: NDArray[Any]) -> None:
        """Copy an array to the device."""
        self._copy(address, values.ctypes.data, values.nbytes, "cudaMemcpyHostToDevice")

    def download(self, values: NDArray[Any], address: int) -> None:
        """Copy from the device into an array."""
        self._copy(values.ctypes.data, address, values.nbytes, "cudaMemcpyDeviceToHost")

    def wait(self) -> None:
        """Wait until all work of the stream is done."""
        self._call("cudaStreamSynchronize", self.stream)

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


class PyCuda:
    """Device memory by pycuda. Raises TargetError if there is no GPU."""

    def __init__(self) -> None:
        self._driver = importlib.import_module("pycuda.driver")
        try:
            self._driver.init()
            count = self._driver.Device.count()
        except Exception as e:  # pycuda's errors have no base class of their own
            raise TargetError(f"CUDA finds no GPU: {first_line(e)}", "install NVIDIA's driver") from e
        if not count:
            raise TargetError("there is no GPU here")
        self._context = self._driver.Device(0).retain_primary_context()  # the one that TensorRT works in
        self._context.push()
        self._stream = self._driver.Stream()
        self.stream = int(self._stream.handle)
        self._held: dict[int, Any] = {}  # pycuda frees memory with its object

    def allocate(self, size: int) -> int:
        """Allocate bytes, and return their address."""
        memory = self._driver.mem_alloc(size)
        self._held[int(memory)] = memory
        return int(memory)

    def free(self, address: int) -> None:
        """Free memory."""
        self._held.pop(address).free()

    def upload(self, address: int, values: NDArray[Any]) -> None:
        """Copy an array to the device."""
        self._driver.memcpy_htod_async(address, values, self._stream)

    def download(self, values: NDArray[Any], address: int) -> None:
        """Copy from the device into an array."""
        self._driver.memcpy_dtoh_async(values, address, self._stream)

    def wait(self) -> None:
        """Wait until all work of the stream is done."""
        self._stream.synchronize()


def open_device() -> Device:
    """The first GPU, by cuda-bindings if installed, else by pycuda. Raises TargetError if neither is installed."""
    for kind in (CudaBindings, PyCuda):
        try:
            return kind()
        except ImportError:
            continue
    raise TargetError("there is no way to GPU memory here: neither cuda-bindings nor pycuda is installed", _INSTALL)


def missing() -> str:
    """Why no engine can run here; empty if one can."""
    try:
        tensorrt_build.module()
        open_device()
    except TargetError as e:
        return str(e)
    return ""


class Engine:
    """A loaded engine. Device memory is reused between runs, and reallocated when a tensor grows.

    Attributes:
        inputs: Names of the inputs.
        outputs: Names of the outputs.

    Raises:
        TargetError: No engine runs on this machine.
        ModelError: This engine does not load.
    """

    def __init__(self, path: Path) -> None:
        """Load an engine file."""
        self._trt = tensorrt_build.module()
        self._device = open_device()
        self._path = path
        self._runtime = self._trt.Runtime(self._trt.Logger(self._trt.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise ModelError(
                f"{path} does not load in {self._trt.__name__} {self._trt.__version__}",
                "an engine runs on the GPUs and with the version it was built for: build it again",
            )
        self._context = self._engine.create_execution_context()
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        given = self._trt.TensorIOMode.INPUT
        self.inputs = tuple(n for n in names if self._engine.get_tensor_mode(n) == given)
        self.outputs = tuple(n for n in names if n not in self.inputs)
        self._memory: dict[str, tuple[int, int]] = {}  # tensor -> address, bytes

    def run(self, feed: Feed) -> dict[str, NDArray[Any]]:
        """Run the engine on one sample.

        Returns:
            Output arrays by name.

        Raises:
            ModelError: An input is missing, a shape is outside the engine's range, or the run fails.
        """
        held = []  # keeps arrays alive until the copies are done
        for name in self.inputs:
            if name not in feed:
                raise ModelError(f"{self._path} asks for input {name!r}, which the sample does not hold")
            values = np.ascontiguousarray(feed[name], self._dtype(name))
            if not self._context.set_input_shape(name, values.shape):
                least, _, most = (tuple(sizes) for sizes in self._engine.get_tensor_profile_shape(name, 0))
                raise ModelError(f"{self._path}: {name!r} has sizes {values.shape}; it takes {least} to {most}")
            address = self._at(name, values.nbytes)
            self._device.upload(address, values)
            held.append(values)
        found = {name: np.empty(self._sizes(name), self._dtype(name)) for name in self.outputs}
        for name, values in found.items():
            self._at(name, values.nbytes)
        if not self._context.execute_async_v3(self._device.stream):
            raise ModelError(f"{self._path} fails in {self._trt.__name__}")
        for name, values in found.items():
            self._device.download(values, self._memory[name][0])
        self._device.wait()
        return found

    def _at(self, name: str, size: int) -> int:
        """Address of memory for this many bytes of a tensor, which the execution context uses from then on."""
        address, room = self._memory.get(name, (0, 0))
        if room < size or not address:
            if address:
                self._device.free(address)
            address, room = self._device.allocate(max(size, 1)), size
            self._memory[name] = address, room
            self._context.set_tensor_address(name, address)
        return address

    def _sizes(self, name: str) -> tuple[int, ...]:
        sizes = tuple(self._context.get_tensor_shape(name))
        if any(size < 0 for size in sizes):
            raise ModelError(f"{self._path}: the sizes of output {name!r} depend on the values, which is not read here")
        return sizes

    def _dtype(self, name: str) -> np.dtype[Any]:
        kind = self._engine.get_tensor_dtype(name)
        try:
            found: np.dtype[Any] = np.dtype(self._trt.nptype(kind))
        except TypeError as e:
            raise ModelError(f"{self._path}: {name!r} is a {kind}, which numpy has not") from e
        return found
