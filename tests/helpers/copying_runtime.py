"""A runtime whose artifact is a copy of the .onnx file: what delivery does is seen without any other runtime."""

import shutil
from pathlib import Path

from onnxshot.errors import TargetError
from onnxshot.graph import Model
from onnxshot.runtimes.base import EmitOptions, Emitted, Finding, Runtime
from onnxshot.runtimes.executed import Execution, NodeExecution
from onnxshot.runtimes.ort_runtime import Runner


class Copying(Runtime):
    """A runtime whose artifact is the .onnx file itself, in two files."""

    format, suffix, extra = "copy", ".copy", "nothing"
    absent = failing = asleep = False
    made: list[EmitOptions]

    def __init__(self) -> None:
        self.made = []

    def check(self) -> None:
        if self.absent:
            raise TargetError("copy is not installed", "pip install copy")

    def preflight(self, model: Model) -> list[Finding]:
        return []

    def emit(self, source: Path, folder: Path, stem: str, options: EmitOptions) -> Emitted:
        self.made.append(options)
        shutil.copy(source, folder / f"{stem}.copy")
        (folder / f"{stem}.more").write_bytes(b"12345")
        if self.failing:
            raise TargetError("copy refuses node 'c1'", "leave it out")
        nodes = (
            NodeExecution("c1", "Conv", "int8", 30, asked=True),
            NodeExecution("c2", "Conv", "float", 2, asked=True),
            NodeExecution("c3", "Conv", "float", 8),
        )
        ran = Execution(nodes, {"Conv": 3})
        return Emitted((f"{stem}.copy", f"{stem}.more"), ran, ("copied",))

    def runs_here(self) -> str:
        return "there is no copier" if self.asleep else ""

    def load(self, path: Path, *, threads: int, options: EmitOptions | None = None) -> Runner:
        return Runner(path.read_bytes(), threads=threads)
