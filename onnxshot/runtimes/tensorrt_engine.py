"""Run a TensorRT engine on the first GPU (see `cuda_device`)."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.errors import ModelError, TargetError
from onnxshot.runtimes import tensorrt_build
from onnxshot.runtimes.base import Feed
from onnxshot.runtimes.cuda_device import Device, open_device

_Memory = dict[str, tuple[int, int]]  # tensor -> address, bytes
_KEPT = 200  # times of runs


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
        package: The Python package that it runs through.
        gpu_ms: Milliseconds of the last runs on the GPU, without copies, by CUDA's events.

    Raises:
        TargetError: No engine runs on this machine.
        ModelError: This engine does not load.
    """

    def __init__(self, path: Path) -> None:
        """Load an engine file."""
        self._trt = tensorrt_build.module()
        self._device = open_device()
        self._path, self._lock, self.gpu_ms = path, threading.Lock(), deque[float](maxlen=_KEPT)
        self.package = self._device.package
        with self._device.current():
            self._load(path)
        weakref.finalize(self, _release, self._device, self._memory)

    def _load(self, path: Path) -> None:
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
        self._memory: _Memory = {}

    def run(self, feed: Feed) -> dict[str, NDArray[Any]]:
        """Run the engine on one sample.

        Returns:
            Output arrays by name.

        Raises:
            ModelError: An input is missing, a shape is outside the engine's range, or the run fails.
        """
        with self._lock, self._device.current():  # the context and the memory are one run's at a time
            return self._run(feed)

    def _run(self, feed: Feed) -> dict[str, NDArray[Any]]:
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
        self._device.start()
        if not self._context.execute_async_v3(self._device.stream):
            raise ModelError(f"{self._path} fails in {self._trt.__name__}")
        self._device.stop()
        for name, values in found.items():
            self._device.download(values, self._memory[name][0])
        self.gpu_ms.append(self._device.wait())
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


def time_note(before: Engine, after: Engine) -> str:
    """A note on the time of two engines on the GPU; empty where one has not run."""
    if not before.gpu_ms or not after.gpu_ms:
        return ""
    was, now = (float(np.median(engine.gpu_ms)) for engine in (before, after))
    return f"on the GPU alone, without copies: {was:.3g} ms for the float model, {now:.3g} ms (through {after.package})"


def _release(device: Device, memory: _Memory) -> None:
    """Free the memory of an engine that is gone. At the end of the process CUDA may be gone before it."""
    with contextlib.suppress(ModelError), device.current():
        while memory:
            device.free(memory.popitem()[1][0])
