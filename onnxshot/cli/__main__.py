"""`python -m onnxshot.cli`."""

from onnxshot.cli.app import main

main()
