"""Tables on terminals of any width: names elided in the middle, figures right, rows of one error merged."""

import io
from dataclasses import dataclass

import pytest
from rich.console import Console

from onnxshot.cli.fitted_table import Field, all_elided, figures, print_table
from onnxshot.cli.merged_errors import merged
from onnxshot.cli.result_frame import Line, lines_of, print_frame, size_line
from onnxshot.report.report import Report
from onnxshot.report.values import Artifact

FIELDS = (Field("node", name=True), Field("op", drop=2), Field("range", figure=True, drop=1), *figures("dB"))
NAMES = [f"/model/layers.{i}/attention/self/value/MatMul_output_0" for i in range(12)]
ROWS = [(name, "MatMul", f"0 .. {i}", f"{i}.0") for i, name in enumerate(NAMES)]


def console(width: int, *, terminal: bool = True) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, soft_wrap=True, color_system=None)


def printed(where: Console) -> list[str]:
    assert isinstance(where.file, io.StringIO)
    return where.file.getvalue().splitlines()


@pytest.mark.parametrize("framed", [False, True])
@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_a_table_is_one_line_a_row_and_never_wider_than_the_terminal(width: int, framed: bool) -> None:
    where = console(width)
    print_table(where, FIELDS, ROWS, framed=framed)
    lines = printed(where)
    assert len(lines) == len(ROWS) + (4 if framed else 1)
    assert max(map(len, lines)) <= width
    assert all(f"{i}.0" in line for i, line in enumerate(lines[3:-1] if framed else lines[1:]))


def test_columns_go_in_their_order_and_names_last() -> None:
    heads = {}
    for width in (120, 48, 44, 24):
        where = console(width)
        print_table(where, FIELDS, ROWS)
        heads[width] = printed(where)[0].split()
    assert heads == {120: ["node", "op", "range", "dB"], 48: ["node", "op", "dB"], 44: ["node", "op", "dB"],
                     24: ["node", "dB"]}  # fmt: skip


def test_figures_stay_whole_where_words_and_names_do_not_fit() -> None:
    fields = (Field("layer", name=True), Field("precision"), *figures("SQNR dB", "float ms"))
    rows = [(name, "float32 -> static uint8 x int8", f"42.{i}", f"0.{i}11") for i, name in enumerate(NAMES[:9])]
    where = console(40)
    print_table(where, fields, rows)
    head, *lines = printed(where)
    assert head.split()[-4:] == ["SQNR", "dB", "float", "ms"]
    for i, line in enumerate(lines):
        assert line.split()[-2:] == [f"42.{i}", f"0.{i}11"]
    assert max(map(len, [head, *lines])) <= 40


@pytest.mark.parametrize("framed", [False, True])
@pytest.mark.parametrize("width", [12, 24, 36, 48])
def test_no_figure_is_cut_at_any_width(width: int, framed: bool) -> None:
    fields = (Field("stage"), *figures("MB", "SQNR dB", "ms", "speed"))
    where = console(width)
    print_table(where, fields, [("quantized", "0.26", "40.8", "0.393", "1.73x")], framed=framed)
    told = " ".join(printed(where))
    assert all(figure in told for figure in ("0.26", "40.8", "0.393", "1.73x", "SQNR dB"))


def test_a_column_goes_before_a_header_is_cut() -> None:
    title = "worst tensors (4 of 16 samples)"
    where = console(56)
    print_table(where, (Field(title, name=True), *FIELDS[1:]), ROWS)
    assert printed(where)[0].startswith(title)


def test_names_take_the_room_that_a_column_left() -> None:
    name = "/blocks/blocks.1/down/down.0/Conv"
    fields = (Field("node", name=True), Field("a long header that goes", figure=True, drop=1), *figures("ms"))
    where = console(len(name) + 24)
    print_table(where, fields, [(name, "1", "0.5")])
    assert printed(where)[1].split() == [name, "0.5"]


def test_figures_stand_right() -> None:
    where = console(80)
    print_table(where, (Field("a"), *figures("ms")), [("x", "1.5"), ("y", "10.25")])
    assert printed(where) == ["a     ms", "x    1.5", "y  10.25"]


def test_a_pipe_has_whole_names() -> None:
    where = console(20, terminal=False)
    print_table(where, FIELDS, ROWS, framed=True)
    assert [line.split()[0] for line in printed(where)] == ["node", *NAMES]


def test_elided_names_still_differ() -> None:
    short = all_elided(NAMES, 24)
    assert max(map(len, short)) == 24
    assert len(set(short)) == len(NAMES)
    assert all_elided(["conv1"], 24) == ["conv1"]


@dataclass(frozen=True)
class Row:
    sqnr_db: float
    depth: int | None


def test_rows_of_one_error_are_one_row() -> None:
    chain = [Row(20.0, 3), Row(20.05, 5), Row(19.98, 4), Row(20.0, 9), Row(35.0, 8), Row(18.0, 1)]
    assert merged(chain) == [(Row(18.0, 1), 1), (Row(20.0, 3), 3), (Row(20.0, 9), 1), (Row(35.0, 8), 1)]
    assert len(merged([Row(20.0, None), Row(20.0, None)])) == 2


def test_a_frame_says_in_words_what_its_colours_say() -> None:
    report = Report("a.onnx", {}, input_bytes=4_000_000, sqnr_db=9.0, agreement=0.5)
    report.samples = {"judged": 64, "cases": 64}
    report.latency = {"float_ms": 1.0, "ms": 2.0, "speedup": 0.5}
    where = console(80)
    print_frame(where, lines_of(report, Artifact("b.onnx", "ort", "onnx", 1_000_000)))
    text = "\n".join(printed(where))
    for words in ("4.00x smaller", "0.50x as fast: slower", "below 15 dB", "below 95 %", "4.00 MB", "1.00 MB"):
        assert words in text
    assert max(map(len, printed(where))) <= 80


def test_a_gain_is_green_and_the_figures_beside_it_are_not() -> None:
    where = Console(file=io.StringIO(), force_terminal=True, width=80, color_system="standard")
    print_frame(where, [size_line(4_000_000, 1_000_000), size_line(1_000_000, 1_000_000)])
    coloured = [line for line in printed(where) if "\x1b[32m" in line]
    assert len(coloured) == 1 and "\x1b[32m4.00x smaller" in coloured[0]


def test_a_comparison_shows_the_sizes_of_both_files() -> None:
    """The candidate's follows from its bits a weight, as no artifact was written."""
    report = Report("b.onnx", {"reference": "a.onnx"}, input_bytes=4_000_000, parameters=1_000_000)
    report.bits_per_weight = 8 * 1.1
    assert lines_of(report)[0] == size_line(4_000_000, 1_100_000)
    report.bits_per_weight = None
    assert all(line.what != "size" for line in lines_of(report))


def test_work_in_int8_is_told_only_where_some_was_to_run_in_it() -> None:
    artifact = Artifact("a.xml", "openvino", "openvino", 1_000_000, int8_macs_share=0.0)
    for precision, told in (("int8", True), ("fp16", False), (None, False)):
        report = Report("a.onnx", {"precision": precision} if precision else {}, input_bytes=4_000_000)
        assert any(line.what == "MACs in int8" for line in lines_of(report, artifact)) is told


@pytest.mark.parametrize("width", [24, 40, 52, 60])
def test_figures_of_a_frame_stay_whole_on_narrow_terminals(width: int) -> None:
    where = console(width)
    lines = [size_line(4_000_000, 1_000_000), Line("SQNR", "", "46.7 dB", "on 16 held-out samples")]
    print_frame(where, lines)
    found = printed(where)
    assert max(map(len, found)) <= width
    told = " ".join(" ".join(found).replace("\N{BOX DRAWINGS LIGHT VERTICAL}", " ").split())
    assert all(figure in told for figure in ("4.00 MB", "1.00 MB", "46.7 dB", "4.00x smaller", "held-out"))
