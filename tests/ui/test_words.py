"""Errors in the words of the page."""

import pytest

from onnxshot.ui.words import page_words


@pytest.mark.parametrize(
    ("said", "shown"),
    [("try --preset imagenet; presets: a, b", "try the preset imagenet; presets: a, b"),
     ("give --calib DATA", "give the samples"), ("export it again", "export it again"),
     ("give --length N", "give the box 'Tokens of a text'"),
     ("model/net/a.onnx, calib/1.png, net/model/b.onnx", "net/a.onnx, 1.png, net/model/b.onnx"),
     ("--tokenizer FILE; it", "drop tokenizer.json with the samples; it"),
     ("pass --memory 4G", "start onnxshot ui with --memory 4G"),
     ("pass --requantize to go back", "pass --requantize to go back (options of onnxshot quantize on the command line, "
      "which this page does not have)"),
     ("yolo export --model x: onnxshot emit --to onnx", "yolo export --model x: onnxshot emit --to onnx")],
)  # fmt: skip
def test_options_of_the_command_line_become_what_the_page_has(said: str, shown: str) -> None:
    assert page_words(said) == shown
