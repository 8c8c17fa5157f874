"""The examples in docstrings give what they say."""

import doctest
import importlib
import pkgutil

import pytest

from onnxshot import graph, maths

PACKAGES = (graph, maths)
MODULES = [f"{package.__name__}.{info.name}" for package in PACKAGES for info in pkgutil.iter_modules(package.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_are_right(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0
