"""Sharded calibration gives the statistics of a single pass, to the bit, for any number of shards."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from handmade.core import model, weight

from onnxshot.api.quantize import quantize
from onnxshot.batch.cells import Cell
from onnxshot.batch.manifest import Entry, Thresholds, load_manifest
from onnxshot.batch.ray_calibration import Pass, calibrated_part, settles, shared_by
from onnxshot.calibration.enough_samples import Settling, stops
from onnxshot.calibration.observers import glimpse
from onnxshot.calibration.outliers import Outliers
from onnxshot.calibration.readers import split
from onnxshot.calibration.sample_parts import parts_of
from onnxshot.calibration.sampling import spread
from onnxshot.calibration.statistics_file import Statistics, load_statistics
from onnxshot.errors import CalibrationError
from onnxshot.execution.observed_tensors import CalibrationPass, calibration_pass
from onnxshot.execution.sharding import LEAST, ShardedPass, ShardResult, run_shard
from onnxshot.execution.statistics_source import from_data
from onnxshot.recipes.recipe import Recipe
from onnxshot.recipes.stages import Stages
from onnxshot.settings import Settings
from onnxshot.stages.observe import observe
from onnxshot.stages.open_samples import open_samples
from onnxshot.stages.prepare_model import prepare_model

NET = """g (float[N, L, 16] x) => (float[N, L, 8] y) {
    h = MatMul(x, w)  a = Relu(h)  i = MatMul(a, t)  b = Relu(i)  j = MatMul(b, u)  s = Softmax(j)  y = MatMul(s, v)
}"""  # three products in a row: fewer have no scales that samples would say
Feeds = list[dict[str, Any]]


def net(path: Path) -> str:
    constants = {"w": weight(16, 16), "t": weight(16, 16, seed=1), "u": weight(16, 16, seed=2), "v": weight(16, 8)}
    path.write_bytes(model(NET, constants).SerializeToString())
    return str(path)


def feeds(n: int, lengths: tuple[int, ...] = (6,), noise: float = 1.0) -> Feeds:
    rng = np.random.default_rng(0)
    return [
        {"x": (noise * rng.standard_normal((1, lengths[i % len(lengths)], 16))).astype(np.float32)} for i in range(n)
    ]


def growing(n: int) -> Feeds:
    """Each sample has larger values than all samples before it."""
    place = {number: at for at, number in enumerate(spread(len(split(n)[0])))}
    return [{"x": feed["x"] * np.float32(1.1 ** place.get(i, 0))} for i, feed in enumerate(feeds(n))]


def odd(n: int) -> Feeds:
    """With a duplicate sample, a blank one, and an outlier."""
    found = feeds(n)
    found[5] = found[3]
    found[7] = {"x": np.full((1, 6, 16), 0.5, np.float32)}
    found[11] = {"x": found[11]["x"] * np.float32(9)}
    return found


def watched(path: str, given: Feeds, settings: Settings, *, choices: bool = False) -> CalibrationPass:
    prepared = prepare_model(path, Recipe(), settings)
    data = open_samples(prepared, given, None).data
    assert data is not None
    calibrated = data.subset(parts_of(len(data), choices=choices).ranging)
    return calibration_pass(prepared.model, prepared.plan(), prepared.recipe, calibrated, settings)


def in_one_pass(path: str, given: Feeds, settings: Settings) -> Statistics:
    prepared = prepare_model(path, Recipe(), settings)
    data = open_samples(prepared, given, None).data
    assert data is not None
    return from_data(prepared.model, prepared.plan(), prepared.recipe, data, settings).statistics


def in_parts(
    path: str, given: Feeds, settings: Settings, count: int, *, choices: bool = False
) -> tuple[Statistics, list[int], str]:
    """The statistics, the number of samples run after each round, and the key."""
    sharded, looked = ShardedPass(settings.samples == "auto", count), []
    while True:
        watches = ((watched(path, given, settings, choices=choices), share) for share in sharded.shares())
        parts = [run_shard(watch, share, Recipe(), settings) for watch, share in watches]
        looked.append(sum(len(part.places) for part in parts))
        assert len(parts) <= count
        found = sharded.add(parts[::-1])  # they come in any order
        if found is not None:
            assert sharded.head is not None
            return found, looked, sharded.head.key


@pytest.mark.parametrize("count", [1, 3, 20])
@pytest.mark.parametrize("samples", ["auto", "all"])
@pytest.mark.parametrize(
    ("make", "n"),
    [(feeds, 200), (feeds, 12), (growing, 150), (odd, 150), (odd, 40), (lambda n: feeds(n, (6, 4, 9)), 100),
     (lambda n: feeds(n, (6, 0, 6)), 100)],
    ids=["settle", "few", "grow", "odd", "odd few", "lengths", "empty"],
)  # fmt: skip
def test_shards_give_the_statistics_of_a_single_pass(
    make: Callable[[int], Feeds], n: int, samples: str, count: int, tmp_path: Path
) -> None:
    path, settings = net(tmp_path / "net.onnx"), Settings(samples=samples, use_cache=False, threads=1)
    given = make(n)
    whole = in_one_pass(path, given, settings)
    found, looked, _ = in_parts(path, given, settings, count)
    assert found == whole
    assert len(looked) == 1 or samples == "auto"


def test_rounds_end_where_a_pass_may_end_and_run_no_sample_in_vain(tmp_path: Path) -> None:
    path, settings = net(tmp_path / "net.onnx"), Settings(use_cache=False, threads=1)
    whole = in_one_pass(path, feeds(400), settings)
    found, looked, _ = in_parts(path, feeds(400), settings, 4)
    assert found == whole
    assert sum(looked) == len(whole.samples) < 300
    _, looked, _ = in_parts(path, growing(200), settings, 100)
    assert looked == [48, 16, 32, 32, 22]
    assert list(stops(150)) == [48, 64, 96, 128, 150]
    assert list(stops(48)) == [48]
    assert list(stops(5)) == [5]


@pytest.mark.parametrize("seed", range(5))
def test_a_stream_ends_at_one_of_the_stops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    settling = Settling(1)
    sizes = (int(size) for size in rng.integers(1, 300, 1000))
    quiet = (settling.add(glimpse([rng.standard_normal((1, 8, size)).astype(np.float32)])) for size in sizes)
    assert list(quiet).index(True) + 1 in list(stops(1000))


def test_outliers_of_shards_equal_those_of_a_single_pass() -> None:
    rng = np.random.default_rng(0)
    values = [rng.standard_normal((2, 4)).astype(np.float32) * (9 if i in (4, 13) else 1) for i in range(20)]
    values[13] *= 3
    whole, parts = Outliers(2), [Outliers(2) for _ in range(3)]
    for i, x in enumerate(values):
        for one in (whole, parts[i % 3]):
            one.add(glimpse([x[:1], x]), f"s{i}")
    assert parts[2].merged(parts[0]).merged(parts[1]).found() == whole.found()
    assert list(whole.found()) == ["s13"]


def test_a_shard_has_enough_samples_to_be_worth_a_process() -> None:
    assert [share.count for share in ShardedPass(True, 1000).shares()] == [48 // LEAST] * (48 // LEAST)
    assert len(ShardedPass(False, 1000).shares()) == 1000


def test_samples_that_differ_between_processes_are_an_error(tmp_path: Path) -> None:
    path, settings = net(tmp_path / "net.onnx"), Settings(samples="all", use_cache=False, threads=1)
    for other in (feeds(20, noise=2.0), feeds(40)):
        sharded, parts = ShardedPass(False, 2), list[ShardResult]()
        for share, given in zip(sharded.shares(), (feeds(20), other), strict=True):
            parts.append(run_shard(watched(path, given, settings), share, Recipe(), settings))
        with pytest.raises(ValueError, match="another process saw other samples"):
            sharded.add(parts)


def test_values_that_are_not_finite_are_refused_in_their_shard(tmp_path: Path) -> None:
    path, settings = net(tmp_path / "net.onnx"), Settings(samples="all", use_cache=False, threads=1)
    given = feeds(20)
    given[split(20)[0][2]]["x"][0, 1, 3] = np.nan
    *_, last = ShardedPass(False, 3).shares()
    with pytest.raises(CalibrationError, match="holds NaN or infinity in input 'x'"):
        run_shard(watched(path, given, settings), last, Recipe(), settings)


def test_shared_statistics_are_used_only_for_their_own_pass(tmp_path: Path) -> None:
    how: dict[str, Any] = {"use_cache": False, "threads": 1, "verify": False, "bench_seconds": 0.1}
    path, settings = net(tmp_path / "net.onnx"), Settings(**how)
    given = odd(100)
    found, looked, key = in_parts(path, given, settings, 3, choices=True)
    found.save(tmp_path / "shared" / f"{key}.npz")
    near = quantize(path, given, settings=settings, effort="fast", target="tensorrt")
    shared = Settings(**how, shared=str(tmp_path / "shared"))
    far = quantize(path, given, settings=shared, effort="fast", target="tensorrt")
    assert far.model.to_proto() == near.model.to_proto()
    assert near.report.samples["inferences"] - far.report.samples["inferences"] == sum(looked)
    assert far.statistics == near.statistics
    assert far.report.notes == near.report.notes
    for others, target, made in ((given, "openvino", False), (given[1:], "tensorrt", True)):
        other = quantize(path, others, settings=shared, effort="fast", target=target)
        completed = far.report.samples["inferences"]  # of samples that chose, by each cell itself
        assert (other.report.samples["inferences"] > completed) == made


def test_a_pass_serves_the_cells_whose_own_pass_would_be_the_same(tmp_path: Path) -> None:
    net(tmp_path / "net.onnx")
    np.savez(tmp_path / "x.npz", x=np.stack([feed["x"] for feed in feeds(20)]))
    models = [{"model": "net.onnx"}, {"model": "net.onnx", "name": "wide", "activation_type": "uint16"}]
    values = {"models": models, "targets": ["openvino", "tensorrt"], "output": "out", "defaults": {"calib": "x.npz"}}
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(values))
    entries = load_manifest(tmp_path / "m.yaml").entries
    one, two, wide, _ = (Cell(entry, target) for entry in entries for target in values["targets"])
    assert shared_by(one) == shared_by(two) != shared_by(wide)
    shared = Pass([one, two, wide], ShardedPass(settles(one), 2))
    ended = [shared.add(calibrated_part(*given), "") for given in shared.begin()]
    assert ended == [False, True]
    assert shared.save(tmp_path)
    assert [shared.serves(cell) for cell in (one, two, wide)] == [True, True, False]
    assert shared.told_of(two) == "10 samples in 2 tasks"
    assert shared.told_of(wide).startswith("by itself: it observes other tensors")
    (path,) = (p for p in tmp_path.glob("*.npz") if len(p.stem) == 64)  # named by its key
    prepared = prepare_model(one.entry.model, Recipe(), Settings(use_cache=False))
    given = observe(prepared, prepared.plan(), open_samples(prepared, one.entry.calib, None))
    assert given is not None
    assert load_statistics(path) == given.statistics


def test_a_pass_that_lost_a_shard_is_not_used_and_says_why(tmp_path: Path) -> None:
    stages = Stages.from_dict({"stages": [{"quantize": {}}]})
    cell = Cell(Entry(("models", 0), "net.onnx", "net", stages, Thresholds(), calib="x.npz"), "ort")
    shared = Pass([cell], ShardedPass(True, 2))
    assert len(shared.begin()) == 2
    assert [shared.add(None, why) for why in ("its node died", "")] == [False, True]
    assert shared.save(tmp_path) is False
    assert not shared.serves(cell)
    assert shared.told_of(cell) == "by itself: its node died"
