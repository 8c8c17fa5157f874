"""`python -m onnxshot`."""

from onnxshot.cli.app import main

main()
