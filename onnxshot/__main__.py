"""`python -m onnxshot`."""

from onnxshot.cli.app import entry

entry()
