"""What an import costs: a verb, and the libraries it needs, are imported when they are used."""

import subprocess
import sys

import pytest

HEAVY = {"numpy", "onnx", "onnxruntime", "onnx_graphsurgeon", "PIL", "yaml", "openvino", "starlette", "ray", "fsspec"}


def loaded_by(code: str) -> set[str]:
    """The modules that are there once the code has run, in a process of its own."""
    code += "\nimport sys; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines())


@pytest.mark.parametrize("code", ["import onnxshot", "import onnxshot.cli.app", "import onnxshot; dir(onnxshot)"])
def test_nothing_heavy_is_imported_before_it_is_used(code: str) -> None:
    found = loaded_by(code)
    assert "onnxshot" in found
    assert not HEAVY & found
    assert not [name for name in found if name.startswith("onnxshot.api.")]


def test_a_verb_brings_what_it_needs_and_no_other_verb() -> None:
    found = loaded_by("import onnxshot; onnxshot.inspect")
    assert {"numpy", "onnx", "onnxshot.api.inspect"} <= found
    assert [name for name in found if name.startswith("onnxshot.api.")] == ["onnxshot.api.inspect"]
    assert not {"openvino", "starlette", "ray", "fsspec", "tensorrt"} & found


def test_what_is_public_is_listed_and_nothing_else() -> None:
    import onnxshot

    assert sorted(dir(onnxshot)) == sorted([*onnxshot.__all__, "__version__"])
    assert all(getattr(onnxshot, name) is not None for name in onnxshot.__all__)
    assert not hasattr(onnxshot, "pipeline")
