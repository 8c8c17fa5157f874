"""What an import costs: a verb, and the libraries it needs, are imported when they are used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from fixture_data import ROOT

import onnxshot
from onnxshot.cli import app

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
    assert sorted(dir(onnxshot)) == sorted([*onnxshot.__all__, "__version__"])
    assert all(getattr(onnxshot, name) is not None for name in onnxshot.__all__)
    assert not hasattr(onnxshot, "pipeline")


def test_the_lists_of_public_names_are_one() -> None:
    """Types, modules and `__all__` of the package name the same; a type checker sees no other name."""
    tree = ast.parse(Path(onnxshot.__file__).read_text("utf-8"))
    (typed,) = (n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    seen = {a.name: n.module for n in typed.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert sorted(seen) == sorted(onnxshot.__all__)
    assert {k: v for k, v in seen.items() if v != "onnxshot"} == onnxshot._HOMES
    (lazy,) = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "__getattr__")
    (hidden,) = (n for n in tree.body if isinstance(n, ast.If) and lazy in n.body)
    assert ast.unparse(hidden.test) == "not TYPE_CHECKING"


@pytest.mark.parametrize("path", sorted((ROOT / "onnxshot").glob("*/")), ids=lambda path: path.name)
def test_no_folder_below_the_verbs_goes_through_the_root_of_the_package(path: Path) -> None:
    """`import onnxshot; onnxshot.quantize` would be an import upwards that import-linter cannot see."""
    if path.name in ("cli", "ui", "batch", "api"):
        return
    for file in path.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            assert not (isinstance(node, ast.Import) and any(a.name == "onnxshot" for a in node.names)), file
            if isinstance(node, ast.ImportFrom) and node.module == "onnxshot":
                modules = {
                    "blas_threads", "errors", "logs", "memory", "progress", "recipes", "settings", "source_tree",
                    "system",
                }  # fmt: skip
                assert {a.name for a in node.names} <= {"__version__", *modules}, file


@pytest.mark.parametrize("name", sorted(app._MODULES))
def test_what_a_command_needs_is_imported_before_signals_raise(name: str) -> None:
    """Handlers that raise are set once the modules of the command are there: its function adds no library of ours."""
    if name == "ui":
        pytest.importorskip("starlette")
    loaded = loaded_by(f"from onnxshot.cli import app; app._import_command([{name!r}])")
    assert set(app._MODULES[name]) <= loaded
    assert "numpy" in loaded or name == "ui"
    assert "numpy" not in loaded_by(f"from onnxshot.cli import app; app._import_command([{name!r}, '--help'])")
