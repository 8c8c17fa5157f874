"""Build one engine in a worker process, so that a builder that crashes or fills the memory does not end its caller.

Run as a script. The job is one line of JSON on stdin, which stays open as long as the caller waits. The answer is
written to a JSON file. The script imports only the standard library and the module that the job names: it starts at
once, and all its memory is the builder's.

Job: "module", "source", "engine", "log", "answer": names and paths; "profiles": input -> smallest, usual, largest
shape; "hardware": words; "sparse": whether to use 2:4 zeros; "timing_cache": file or null. Answer: "error": null if
there is none, empty if the log has the reason; "node": where it happened, if known.
"""

import importlib
import json
import os
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_ANY_VERSION = "VERSION_COMPATIBLE"


class RefusedError(Exception):
    """The parser or builder refused the model; `node` names the node if it is known."""

    def __init__(self, message: str, node: str = "") -> None:
        super().__init__(message)
        self.node = node


def build(trt: Any, job: dict[str, Any], log: Any) -> None:
    """Build the engine of a job with this TensorRT module, writing its log to an open file. Raises RefusedError."""

    class Log(trt.ILogger):  # type: ignore[misc]  # the module is chosen at run time
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            log.writelines(f"{severity.name}|{line}\n" for line in message.splitlines())

    logger = Log()
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    # Parse from the path, so that external data is found. The flag for uint8 of DLA stays off: it crashes.
    if not parser.parse_from_file(job["source"]):
        raise _parse_error(parser)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # logs the compiled layers with their types
    if job["hardware"]:
        (_set_capabilities if job["module"] == "tensorrt_rtx" else _set_levels)(trt, config, job["hardware"])
    if job["sparse"]:
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    if job["profiles"]:
        profile = builder.create_optimization_profile()
        for name, sizes in job["profiles"].items():
            profile.set_shape(name, *map(tuple, sizes))
        config.add_optimization_profile(profile)
    cache = Path(job["timing_cache"]) if job["timing_cache"] else None
    if cache is not None:
        known = config.create_timing_cache(cache.read_bytes() if cache.exists() else b"")
        if known is None or config.set_timing_cache(known, ignore_mismatch=False) is False:
            raise RefusedError("the timing cache is none of this TensorRT on this device: name another file for it")
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise RefusedError("")  # the log says why
    Path(job["engine"]).write_bytes(memoryview(engine))
    if cache is not None:
        cache.write_bytes(memoryview(config.get_timing_cache().serialize()))


def _network_flags(trt: Any) -> int:
    """Flags for a strongly typed network with an explicit batch.

    TensorRT 11 and RTX have no such flags: it is their default.
    """
    kinds = trt.NetworkDefinitionCreationFlag
    return sum(1 << int(getattr(kinds, name)) for name in ("EXPLICIT_BATCH", "STRONGLY_TYPED") if hasattr(kinds, name))


def _parse_error(parser: Any) -> RefusedError:
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    if not errors:
        return RefusedError("the parser gave no reason")
    first = errors[0]
    name, op = (str(getattr(first, what, lambda: "")()) for what in ("node_name", "node_operator"))
    lines = [line.strip() for line in str(first.desc()).splitlines() if line.strip()]
    text = "; ".join(lines[:2]) or "no reason given"
    return RefusedError(f"{op}: {text}" if op else text, name)


def _set_capabilities(trt: Any, config: Any, words: list[str]) -> None:
    """TensorRT-RTX: set the GPUs the engine is for; by default all that the module knows."""
    kinds = trt.ComputeCapability
    _refuse_unknown(words, kinds.__members__)
    config.num_compute_capabilities = len(words)
    for at, word in enumerate(words):
        config.set_compute_capability(getattr(kinds, word.upper()), at)


def _set_levels(trt: Any, config: Any, words: list[str]) -> None:
    """TensorRT: set which other GPUs and versions the engine is for."""
    levels = trt.HardwareCompatibilityLevel
    _refuse_unknown(words, [*levels.__members__, _ANY_VERSION])
    for word in words:
        if word.upper() == _ANY_VERSION:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        else:
            config.hardware_compatibility_level = getattr(levels, word.upper())


def _refuse_unknown(words: list[str], members: Iterable[str]) -> None:
    known = sorted(name.lower() for name in members if name != "NONE")
    unknown = [word for word in words if word.lower() not in known]
    if unknown:
        raise RefusedError(f"no hardware {unknown[0]!r}; it knows {', '.join(known)}")


def main() -> None:
    """Read the job, build the engine, and write the answer."""
    job = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    answer: dict[str, Any] = {"error": None, "node": ""}
    # Line buffered, so that the log of a crash ends where it happened.
    with Path(job["log"]).open("w", encoding="utf-8", errors="replace", buffering=1) as log:
        try:
            build(importlib.import_module(job["module"]), job, log)
        except RefusedError as e:
            answer |= {"error": str(e), "node": e.node}
        except Exception as e:  # the bindings raise any type, mostly for errors that are in the log already
            log.write(f"ERROR|{type(e).__name__}: {e}\n")
            answer["error"] = ""
    Path(job["answer"]).write_text(json.dumps(answer), encoding="utf-8")


def _end_with_stdin() -> None:
    """Exit when the caller is gone, which closes stdin: a build may take half an hour."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


if __name__ == "__main__":
    main()
