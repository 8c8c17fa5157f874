"""A stand-in for TensorRT 10: it records what it is asked for, and its engine is that record as JSON.

FAKE_TENSORRT says how it fails: no gpu, crash, sleep, fill (the memory), refuse (parsing), nothing (no engine).
"""

import ctypes
import enum
import json
import os
import time
from typing import Any

import numpy as np

__version__ = "10.9.0"
asked: dict[str, Any] = {}
MODE = os.environ.get("FAKE_TENSORRT", "")


class NetworkDefinitionCreationFlag(enum.IntEnum):
    EXPLICIT_BATCH = 0
    STRONGLY_TYPED = 1


class BuilderFlag(enum.IntEnum):
    SPARSE_WEIGHTS = 0
    VERSION_COMPATIBLE = 1


class HardwareCompatibilityLevel(enum.IntEnum):
    NONE = 0
    AMPERE_PLUS = 1
    SAME_COMPUTE_CAPABILITY = 2


class ProfilingVerbosity(enum.IntEnum):
    DETAILED = 0


class TensorIOMode(enum.IntEnum):
    INPUT = 1
    OUTPUT = 2


class Severity(enum.IntEnum):
    ERROR = 1
    VERBOSE = 4


class ILogger:
    def log(self, severity: Severity, message: str) -> None:
        raise AssertionError("every logger has a log of its own")


class Logger:
    ERROR = Severity.ERROR

    def __init__(self, severity: Severity) -> None:
        self.severity = severity


class ParserError:
    def desc(self) -> str:
        return "Assertion failed: it is not to be\nmore of it"

    def node_name(self) -> str:
        return "conv1"

    def node_operator(self) -> str:
        return "Conv"


class OnnxParser:
    num_errors = 1

    def __init__(self, network: Any, logger: ILogger) -> None:
        self.logger = logger

    def parse_from_file(self, path: str) -> bool:
        asked["source"] = path
        self.logger.log(Severity.VERBOSE, "Parsing node: conv1 [Conv]")
        if MODE == "crash":
            os.abort()
        if MODE == "sleep":
            time.sleep(60)
        if MODE == "fill":
            held = bytearray(600 << 20)
            held[:: 1 << 12] = b"1" * len(held[:: 1 << 12])
            time.sleep(60)
        return MODE != "refuse"

    def get_error(self, index: int) -> ParserError:
        return ParserError()


class TimingCache:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> bytes:
        return self.data + b"measured;"


class Profile:
    def set_shape(self, name: str, least: tuple[int, ...], usual: tuple[int, ...], largest: tuple[int, ...]) -> None:
        asked.setdefault("profile", {})[name] = [least, usual, largest]


class Config:
    profiling_verbosity = None
    hardware_compatibility_level = HardwareCompatibilityLevel.NONE

    def set_flag(self, flag: BuilderFlag) -> None:
        asked.setdefault("flags", []).append(flag.name)

    def add_optimization_profile(self, profile: Profile) -> None:
        asked["profiles"] = asked.get("profiles", 0) + 1

    def create_timing_cache(self, data: bytes) -> TimingCache:
        return TimingCache(data)

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        self.cache = cache
        return ignore_mismatch or cache.data.startswith(b"measured;") or not cache.data

    def get_timing_cache(self) -> TimingCache:
        return self.cache


class Builder:
    def __init__(self, logger: ILogger) -> None:
        self.logger = logger
        if MODE == "no gpu":
            logger.log(Severity.ERROR, "createInferBuilder: Error Code 6: CUDA initialization failure with error: 35")
            raise TypeError("factory function returned nullptr")

    def create_network(self, flags: int) -> object:
        asked["network"] = flags
        return object()

    def create_builder_config(self) -> Config:
        return Config()

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: object, config: Config) -> bytes | None:
        if MODE == "nothing":
            self.logger.log(Severity.ERROR, "IBuilder::build: Error Code 4: no kernel for conv1")
            return None
        asked["level"] = config.hardware_compatibility_level.name
        asked["verbosity"] = getattr(config.profiling_verbosity, "name", "")
        return json.dumps(asked).encode()


# ---------------------------------------------------------------------- an engine that doubles x, [n, 3] -> [n, 3]


def nptype(kind: str) -> type:
    if kind == "bfloat16":
        raise TypeError(kind)
    return np.float32


class Context:
    def __init__(self) -> None:
        self.shape: tuple[int, ...] = (-1, 3)
        self.address: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return shape[0] <= 4

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape

    def set_tensor_address(self, name: str, address: int) -> None:
        self.address[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        size = int(np.prod(self.shape))
        x, y = ((ctypes.c_float * size).from_address(self.address[name]) for name in ("x", "y"))
        for i in range(size):
            y[i] = 2 * x[i]
        return True


class Engine:
    num_io_tensors = 2

    def get_tensor_name(self, index: int) -> str:
        return "xy"[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name == "x" else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> str:
        return "float32"

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, int]]:
        return [(1, 3), (2, 3), (4, 3)]

    def create_execution_context(self) -> Context:
        return Context()


class Runtime:
    def __init__(self, logger: Logger) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        return Engine() if plan == b"engine" else None
