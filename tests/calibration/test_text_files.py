from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from onnxshot.calibration import text_files
from onnxshot.calibration.checks import InputSpec
from onnxshot.calibration.text_files import Text, files_of_text, is_record, of_record, records_of_text
from onnxshot.errors import CalibrationError

IDS = [InputSpec("input_ids", np.dtype(np.int64), (1, "n"))]


def read(path: Path, content: str | bytes, field: str | None = None) -> list[Text]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return files_of_text(path, [path], field)


def test_a_txt_is_one_document_whose_lines_are_texts(tmp_path: Path) -> None:
    (document,) = read(tmp_path / "t.txt", b"\xef\xbb\xbfone two\r\n\r\n three \r\n")
    assert document == Text("t.txt", "one two\n\n three \n", whole=True)
    assert [(t.where, t.text) for t in document.lines()] == [("t.txt line 1", "one two"), ("t.txt line 3", "three")]
    assert read(tmp_path / "e.txt", " \n\n") == []


@pytest.mark.parametrize(
    ("record", "text", "target", "second"),
    [
        ("plain", "plain", None, None),
        (["from", "to"], "from", "to", None),
        ({"text": "a", "label": 1, "id": "x"}, "a", None, None),
        ({"input": "a", "output": "b"}, "a", "b", None),
        ({"source": "a", "target": "b"}, "a", "b", None),
        ({"prompt": "a", "completion": "b"}, "a", "b", None),
        ({"translation": {"en": "a", "de": "b"}}, "a", "b", None),
        ({"sentence1": "a", "sentence2": "b"}, "a", None, "b"),
        ({"text": "a", "text_pair": "b"}, "a", None, "b"),
        ({"body": "only", "n": 3}, "only", None, None),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "a\nb", None, None),
        ({"conversations": [{"from": "human", "value": "a"}]}, "a", None, None),
        ({"messages": [{"content": [{"type": "text", "text": "a"}, {"type": "image"}]}]}, "a", None, None),
    ],
)
def test_a_record_tells_its_text(record: object, text: str, target: str | None, second: str | None) -> None:
    found = of_record(record, "x")
    assert (found.text, found.target, found.second) == (text, target, second)


def test_a_named_field_wins() -> None:
    assert of_record({"text": "a", "body": "b"}, "x", "body").text == "b"
    with pytest.raises(CalibrationError, match="no text in field 'title'"):
        of_record({"text": "a"}, "x", "title")
    with pytest.raises(CalibrationError, match="no text in field 'title': it holds a list"):
        of_record({"text": "a", "title": ["b"]}, "x", "title")


def test_two_halves_of_a_character_are_one() -> None:
    assert of_record(json.loads('{"text": "\\ud83d\\ude00"}'), "x").text == "\U0001f600"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", '{"text": "a"}\n\n{"text": \n', r"t.jsonl line 3 is not JSON"),
        ("t.jsonl", '{"a": "1", "b": "2"}\n', r"t.jsonl line 1 has no field 'text', but 'a', 'b'"),
        ("t.jsonl", '{"text": "a"}\n7\n', r"t.jsonl line 2 is a number, not a text"),
        ("t.jsonl", '{"messages": [{"content": 7}]}\n', r"line 1 has a message whose content is a number"),
        ("t.jsonl", '{"text": "a"}\nnull\n', r"t.jsonl line 2 is null, not a text"),
        ("t.jsonl", '{"text": NaN}\n', r"t.jsonl line 1 has a number in field 'text', not a text"),
        ("t.jsonl", '{"text": "a"}\n{"text": "b \\ud800"}\n', r"t.jsonl line 2 holds \\ud800 alone"),
        ("t.jsonl", '{"input": "a", "output": "\\udc00"}\n', r"t.jsonl line 1 holds \\udc00 alone"),
        ("t.jsonl", "[" * 100_000 + "\n", r"t.jsonl line 1 is not JSON"),
        ("t.tsv", "text\ttarget\na\tb\nc\n", r"t.tsv line 3 has 1 columns, the first line 2"),
        ("t.tsv", "a\tb\tc\n", r"t.tsv line 1 has 3 columns"),
        ("t.txt", b"one\ncaf\xe9\n", r"not UTF-8: byte 0xe9 in line 2"),
        ("t.txt", "one".encode("utf-16"), r"is UTF-16, not UTF-8"),
        ("t.txt", b"a\0b", r"NUL bytes"),
    ],
)
def test_what_is_no_text_is_named_with_its_line(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        read(tmp_path / name, content)


def test_a_latin_1_file_is_told_how_to_be_converted(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError) as raised:
        read(tmp_path / "t.txt", "café".encode("latin-1"))
    assert "iconv -f latin1" in raised.value.hint


def test_columns_go_by_the_names_of_the_first_line_or_are_text_and_target(tmp_path: Path) -> None:
    named = read(tmp_path / "n.tsv", "id\tsentence\tlabel\n1\tgood film\t1\n")
    assert [(t.text, t.target) for t in named] == [("good film", None)]
    assert [(t.text, t.target) for t in read(tmp_path / "p.tsv", "hello\thallo\nyes\tja\n")] == [
        ("hello", "hallo"), ("yes", "ja"),
    ]  # fmt: skip
    assert [t.where for t in read(tmp_path / "one.tsv", "hello\n\nyes\n")] == ["one.tsv line 1", "one.tsv line 3"]


def test_files_past_the_limit_are_refused_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "MOST_TEXT", 1 << 20)
    for i in range(2):
        (tmp_path / f"{i}.txt").write_text("word " * 150_000)
    with pytest.raises(CalibrationError, match="hold more than 1 MiB"):
        files_of_text(tmp_path, sorted(tmp_path.iterdir()))


def test_items_are_texts_unless_they_name_an_input() -> None:
    assert is_record("a", IDS) and is_record(("a", "b"), IDS) and is_record({"text": "a"}, IDS)
    assert not is_record({"input_ids": [1], "text": "a"}, IDS)
    assert not is_record({"x": np.zeros(1)}, IDS) and not is_record(None, IDS) and not is_record(3, IDS)


def test_items_of_an_iterable_are_texts_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [t.where for t in records_of_text("list", ["a", " ", {"text": "b"}])] == ["list #0", "list #2"]
    monkeypatch.setattr(text_files, "MOST_TEXT", 10)
    endless = (json.dumps(i) + "word" for i in iter(int, 1))
    assert len(records_of_text("endless", endless)) == 2
    with pytest.raises(CalibrationError, match="list #1 is a number, not a text"):
        records_of_text("list", ["a", 7])
