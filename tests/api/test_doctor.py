"""`doctor`: what is told of this machine is what its runtimes say, and nothing that is missing is an error."""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import onnxshot
from onnxshot.api import doctor as doctor_module
from onnxshot.diagnostics import machine, runtime_trials
from onnxshot.diagnostics.runtime_trials import Trial
from onnxshot.errors import TargetError
from onnxshot.targets import TARGETS


def test_packages_are_what_they_say() -> None:
    found = {p.name: p for p in machine.packages()}
    assert found["onnxruntime"].version == onnxruntime.__version__
    assert "CPUExecutionProvider" in found["onnxruntime"].devices
    assert all(p.version or p.problem for p in found.values())


def test_a_broken_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise OSError(f"lib{name}.so: cannot open")

    monkeypatch.setattr("importlib.import_module", broken)
    assert machine.packages()[0].problem == "OSError: libonnxruntime.so: cannot open"


def test_extras_are_those_of_the_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [
        "numpy>=1", 'no-such-thing>=1; extra == "a"', "numpy>=1; extra == 'a'", 'numpy; extra == "b"',
        'no-such-thing; extra == "dev"',
    ]  # fmt: skip
    monkeypatch.setattr(metadata, "requires", lambda _: wanted)
    assert machine.extras() == (machine.Extra("a", ("no-such-thing",)), machine.Extra("b", ()))


@pytest.mark.parametrize(
    ("body", "expected"),
    [("echo 'NVIDIA X, 1.2, 80 MiB, 9.0'", ("NVIDIA X, 1.2, 80 MiB, 9.0",)), ("exit 9", ())],
)
def test_gpus(body: str, expected: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{body}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert machine.gpus() == expected


def test_sums_saturate_where_they_come_out_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    if machine.processor().sums_exactly:
        assert not runtime_trials.sums_saturate()
    monkeypatch.setattr(runtime_trials.Runner, "run", lambda *_: {"y": np.full((1, 16), 32 * 32767, np.int32)})
    assert runtime_trials.sums_saturate()


def test_the_network_is_run_for_a_target() -> None:
    found = doctor_module.try_target("ort", seconds=0.01)
    assert (found.refused, found.share) == ("", 1.0)
    assert found.speedup is not None
    assert found.sqnr_db is not None
    assert found.sqnr_db > 30


def test_a_target_that_is_missing_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise TargetError("it is not installed", "pip install it")

    monkeypatch.setattr(doctor_module, "quantize", missing)
    found = onnxshot.doctor()
    assert set(found.verdicts) == set(TARGETS)
    assert all(
        verdict.startswith("not run here: it is not installed (pip install it)") for verdict in found.verdicts.values()
    )
    assert json.loads(json.dumps(found.to_dict()))["version"] == onnxshot.__version__


@pytest.mark.parametrize(
    ("target", "saturates", "told"),
    [
        ("ort", True, 'use target="ort-avx2"'),
        ("ort-avx2", False, "not needed here"),
        ("openvino", True, "2.00x of float (faster), SQNR 40 dB, 100 % of the work in int8"),
    ],
)
def test_verdicts(target: str, saturates: bool, told: str) -> None:
    assert told in doctor_module._verdict(Trial(target, "int8", "", 1.0, 2.0, 40.0), saturates)
    assert "(slower)" in doctor_module._verdict(Trial(target, "int8", "", 1.0, 0.5, 40.0), saturates)


@pytest.mark.parametrize(("shell", "script"), [("bash", "complete -o default"), ("zsh", "#compdef onnxshot")])
def test_completion(shell: str, script: str, tmp_path: Path) -> None:
    command = tmp_path / "onnxshot"
    command.write_text(f"#!{sys.executable}\nfrom onnxshot.cli.app import entry\nentry()\n")
    command.chmod(0o755)
    environment = {**os.environ, "_ONNXSHOT_COMPLETE": f"source_{shell}"}
    shown = subprocess.run([command], env=environment, capture_output=True, text=True)
    assert script in shown.stdout, shown
    asked = {"_ONNXSHOT_COMPLETE": f"complete_{shell}", "COMP_WORDS": "onnxshot qua", "COMP_CWORD": "1"}
    asked["_TYPER_COMPLETE_ARGS"] = "onnxshot qua"
    done = subprocess.run([command], env={**os.environ, **asked}, capture_output=True, text=True)
    assert "quantize" in done.stdout, done
