"""What people have as samples: tensors, batches, loaders, data sets, tables; each is told in a note, or refused."""

from __future__ import annotations

import numpy as np
import pytest

from onnxshot.calibration.checks import NamedFeed
from onnxshot.calibration.given import repeatable, with_transform
from onnxshot.calibration.readers import InputSpec, Sample, open_data
from onnxshot.errors import CalibrationError, UsageError
from tests.helpers.fakes.tensors import ArrayTensor, HubDataset, Loader, MapDataset, PackTensor, TorchTensor

F32 = np.dtype(np.float32)
I64 = np.dtype(np.int64)
VECTOR = (InputSpec("x", F32, ("N", 4)),)
TEXT = (InputSpec("ids", I64, ("batch", "T")), InputSpec("mask", I64, ("batch", "T")))
ROWS = np.arange(24, dtype=np.float32).reshape(6, 4)
IDS = np.arange(30, dtype=np.int64).reshape(6, 5)


def values(data, name="x"):
    return np.concatenate([sample.feed[name] for sample in data])


def refused(source, specs=VECTOR, **options):
    with pytest.raises(CalibrationError) as caught:
        list(open_data(source, specs, **options))
    return str(caught.value)


@pytest.mark.parametrize("make", [TorchTensor, ArrayTensor, PackTensor])
def test_tensors_of_any_library_are_arrays(make):
    whole = open_data(make(ROWS), VECTOR)
    assert len(whole) == 6
    for source in ([make(row[None]) for row in ROWS], [{"x": make(row[None])} for row in ROWS], {"x": make(ROWS)}):
        data = open_data(source, VECTOR)
        np.testing.assert_array_equal(values(data), ROWS)
        assert data.digests() == whole.digests()
    np.testing.assert_array_equal(values(open_data([make(row) for row in ROWS], VECTOR)), ROWS)


def test_a_tensor_of_a_type_that_numpy_lacks_becomes_a_float():
    np.testing.assert_array_equal(values(open_data([TorchTensor(ROWS, bfloat16=True)], VECTOR)), ROWS)


def test_a_batch_of_eight_is_eight_samples():
    batches = np.arange(96, dtype=np.float32).reshape(3, 8, 4)
    for source in (list(batches), [{"x": b} for b in batches], (b for b in batches)):
        data = open_data(source, VECTOR)
        assert [sample.feed["x"].shape for sample in data] == [(1, 4)] * 24
        np.testing.assert_array_equal(values(data), batches.reshape(24, 4))
        assert f"{data.source} of 3 batches of 8: 24 samples" in data.notes
    assert open_data(list(batches), VECTOR).name(9) == "list #1[1]"


@pytest.mark.parametrize(("fixed", "count"), [(1, 8), (2, 4), (4, 2), (8, 1)])
def test_a_batch_is_parted_to_the_models_own(fixed, count):
    batch = np.arange(32, dtype=np.float32).reshape(8, 4)
    data = open_data([batch], (InputSpec("x", F32, (fixed, 4)),))
    assert len(data) == count
    np.testing.assert_array_equal(values(data), batch)


def test_the_last_short_batch_of_a_fixed_size_is_left_out_and_told():
    data = open_data(Loader(np.ones((14, 4), np.float32), 4), (InputSpec("x", F32, (4, 4)),))
    assert len(data) == 3
    assert any("2 rows of Loader were left out" in note for note in data.notes)


def test_states_are_parted_along_the_axis_that_has_the_name_of_the_batch():
    specs = (InputSpec("x", F32, ("N", 4)), InputSpec("h", F32, (2, "N", 3)), InputSpec("rate", I64, ()))
    h = np.arange(36, dtype=np.float32).reshape(2, 6, 3)
    data = open_data([{"x": ROWS, "h": h, "rate": 16000}], specs)
    assert len(data) == 6
    np.testing.assert_array_equal(data[2].feed["h"], h[:, 2:3])
    assert data[2].feed["rate"] == 16000


@pytest.mark.parametrize(
    ("shape", "given"),
    [
        (("sequence", 4), (6, 4)),  # one sequence
        (("num_points", 3), (100, 3)),
        ((None, None, 3), (48, 64, 3)),  # one picture
        (("N",), (16000,)),
        (None, (6, 4)),
    ],
)
def test_what_may_be_one_sample_stays_whole(shape, given):
    data = open_data([np.ones(given, np.float32)], (InputSpec("x", F32, shape),))
    assert [sample.feed["x"].shape for sample in data] == [given]


def test_inputs_of_different_lengths_stay_whole():
    specs = (InputSpec("nodes", F32, ("n", 4)), InputSpec("edges", I64, ("e", 2)))
    (sample,) = open_data([{"nodes": ROWS, "edges": np.ones((9, 2), np.int64)}], specs)
    assert sample.feed["nodes"].shape == (6, 4)


def test_timing_keeps_batches_that_the_model_takes():
    assert [s.feed["x"].shape for s in open_data([ROWS], VECTOR, whole=True)] == [(6, 4)]
    assert len(open_data([ROWS], (InputSpec("x", F32, (1, 4)),), whole=True)) == 6


def test_labels_of_a_loader_are_dropped_and_told():
    data = open_data(Loader(ROWS, 4), VECTOR)
    np.testing.assert_array_equal(values(data), ROWS)
    assert "Loader of 2 batches of up to 4: 6 samples" in data.notes
    assert "second element of each item dropped: not an input of the model" in data.notes
    assert len(open_data(Loader(np.ones((100, 4), np.float32), 8), VECTOR, limit=20)) == 20


def test_a_data_set_of_torch_is_read_where_it_is_asked():
    source = MapDataset(np.ones((1000, 1, 4), np.float32))
    data = open_data(source, VECTOR, limit=5)
    assert len(list(data)) == 5
    assert len(source.read) < 10  # evenly spaced ones, not all
    assert any("second element" in note for note in data.notes)


def test_tuples_go_in_the_order_of_the_inputs():
    mask = np.ones_like(IDS)
    per_row = [(IDS[i], mask[i], i % 2) for i in range(6)]
    nested = [((IDS[i], mask[i]), i % 2) for i in range(6)]
    named = [({"ids": IDS[i], "mask": mask[i]}, i % 2) for i in range(6)]
    for source in (per_row, nested, named, (IDS, mask)):
        data = open_data(source, TEXT)
        np.testing.assert_array_equal(values(data, "ids"), IDS)
        np.testing.assert_array_equal(values(data, "mask"), mask)
    assert "elements of each item are taken in the order of the inputs: 'ids', 'mask'" in open_data(per_row, TEXT).notes
    assert "the first 2 arrays are the inputs 'ids', 'mask', in this order" in open_data((IDS, mask), TEXT).notes
    assert "has 1 elements; the model has 2 inputs: 'ids', 'mask'" in refused([(IDS,)], TEXT)
    assert "gives arrays without names" in refused([IDS], TEXT)


def test_columns_of_a_hub_data_set_go_by_name_and_others_are_dropped():
    source = HubDataset({"ids": IDS, "mask": np.ones_like(IDS), "label": np.arange(6), "idx": np.arange(6)})
    data = open_data(source, TEXT)
    np.testing.assert_array_equal(values(data, "ids"), IDS)
    assert "'label', 'idx' of each item dropped: they are not inputs of the model" in data.notes
    assert "HubDataset #0 holds only 'input_ids', 'mask' ('input_ids' may be meant" in refused(
        HubDataset({"input_ids": IDS, "mask": IDS}), TEXT
    )
    assert "or give transform=lambda item: item['image']" in refused([{"image": ROWS, "label": 1, "x2": 2}])
    assert "give one of them: data['train']" in refused({"train": source, "test": source}, TEXT)


def test_extra_arrays_of_files_are_left_out_and_told(tmp_path):
    np.savez(tmp_path / "all.npz", x=ROWS, y=np.arange(6))
    data = open_data(tmp_path / "all.npz", VECTOR)
    np.testing.assert_array_equal(values(data), ROWS)
    assert any("'y' of" in note for note in data.notes)


def test_a_dict_with_one_array_feeds_the_only_input():
    data = open_data([{"pixels": ROWS}], VECTOR)
    assert len(data) == 6
    assert "'pixels' of each item is taken as input 'x'" in data.notes


def test_tables():
    pandas = pytest.importorskip("pandas")
    numbers = pandas.DataFrame(ROWS, columns=list("abcd"))
    data = open_data(numbers, VECTOR)
    np.testing.assert_array_equal(values(data), ROWS)
    assert "the 4 columns of DataFrame, in their order, are input 'x'" in data.notes
    assert "has 5 columns: 'a', 'b', 'c', 'd', 'y' (select the 4" in refused(numbers.assign(y=1), VECTOR)
    columns = tuple(InputSpec(name, F32, ("N", 1)) for name in "ac")
    data = open_data(numbers, columns)
    np.testing.assert_array_equal(values(data, "c"), ROWS[:, 2:3])
    assert "'b', 'd' of DataFrame dropped: not inputs of the model" in data.notes
    ragged = pandas.DataFrame({"ids": [[1, 2], [3, 4, 5]], "mask": [[1, 1], [1, 1, 1]], "label": [0, 1]})
    assert [s.feed["ids"].shape for s in open_data(ragged, TEXT)] == [(1, 2), (1, 3)]
    halves = with_transform(numbers, lambda row: np.array([row[name] / 2 for name in "abcd"]))
    np.testing.assert_array_equal(values(open_data(halves, VECTOR)), ROWS / 2)


def test_a_transform_makes_inputs_of_items():
    def half(item):
        return item / 2

    for source in (ROWS, list(ROWS), iter(ROWS), MapDataset(ROWS)):
        by = half if not isinstance(source, MapDataset) else lambda item: half(item[0])
        np.testing.assert_array_equal(values(open_data(with_transform(source, by), VECTOR)), ROWS / 2)
    of_dict = with_transform({"a": ROWS, "b": ROWS}, lambda item: item["a"] + item["b"])
    np.testing.assert_array_equal(values(open_data(of_dict, VECTOR)), ROWS * 2)
    batches = with_transform(Loader(ROWS, 4), lambda item: {"x": item[0]})
    assert len(open_data(batches, VECTOR)) == 6


def test_a_transform_gets_the_paths_of_a_folder(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.raw").write_bytes(ROWS[i].tobytes())
    (tmp_path / ".hidden").write_text("")
    source = with_transform(tmp_path, lambda path: np.frombuffer(path.read_bytes(), np.float32))
    np.testing.assert_array_equal(values(open_data(source, VECTOR)), ROWS[:3])


def test_a_transform_that_fails_names_the_item(tmp_path):
    def broken(item):
        raise KeyError("image")

    assert "transform of list #0 raised KeyError: 'image', at " in refused(with_transform(list(ROWS), broken))
    assert "transform of list #0 returned None" in refused(with_transform(list(ROWS), lambda item: None))
    np.save(tmp_path / "a.npy", ROWS)
    assert "takes items one by one" in refused(with_transform(tmp_path / "a.npy", lambda item: item))
    with pytest.raises(UsageError, match="transform is of type int"):
        with_transform(ROWS, 3)
    with pytest.raises(UsageError, match="no items to transform"):
        with_transform("random", lambda item: item)


def test_a_stream_is_read_once_and_opened_again():
    source = repeatable(with_transform((row for row in ROWS), lambda row: row * 2))
    first = open_data(source, VECTOR)
    first.close()
    np.testing.assert_array_equal(values(open_data(source, VECTOR)), ROWS * 2)
    assert repeatable(ROWS) is ROWS


def test_torchs_own_tensors_and_loaders():
    torch = pytest.importorskip("torch")
    data = torch.utils.data.TensorDataset(torch.tensor(ROWS), torch.arange(6))
    for source in (data, torch.utils.data.DataLoader(data, batch_size=4), torch.tensor(ROWS, requires_grad=True)):
        np.testing.assert_array_equal(values(open_data(source, VECTOR)), ROWS)
    brain = torch.tensor(ROWS, dtype=torch.bfloat16)
    np.testing.assert_array_equal(values(open_data([brain], VECTOR)), ROWS)


def test_a_feed_that_is_known_to_be_one_sample_stays_whole():
    for item in (NamedFeed({"x": ROWS}, "a"), Sample("a", {"x": ROWS})):
        assert [s.feed["x"].shape for s in open_data([item], VECTOR)] == [(6, 4)]
        assert [s.feed["x"].shape for s in open_data(iter([item]), VECTOR)] == [(6, 4)]
