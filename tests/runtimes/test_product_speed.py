"""Products are timed in both forms, each shape once, within a budget."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxshot.runtimes import product_speed
from onnxshot.runtimes.ort_session import SessionRunner
from onnxshot.runtimes.product_speed import FORMS, Blocks, ProductSpeed

SYMMETRIC = Blocks(4, 32, False)


@pytest.mark.parametrize("blocks", [SYMMETRIC, Blocks(4, 16, True), Blocks(8, 128, True), Blocks(8, 64, False)])
@pytest.mark.parametrize("inputs", [64, 100])
def test_the_models_that_are_timed_multiply(blocks: Blocks, inputs: int) -> None:
    x = np.random.default_rng(2).standard_normal((5, inputs), np.float32)
    made = {form: product_speed._model(form, inputs, 24, blocks) for form in FORMS}
    assert {form: SessionRunner(m).run({"x": x})["y"].shape for form, m in made.items()} == dict.fromkeys(
        FORMS, (5, 24)
    )
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load_from_string(made["dynamic"]).graph.initializer}
    real = stored["w"].astype(np.float32) * stored["s"]
    got = SessionRunner(made["dynamic"]).run({"x": x})["y"]
    assert np.linalg.norm(got - x @ real) < 0.02 * np.linalg.norm(x @ real)
    assert set(product_speed._measured(inputs, 24, 4, blocks)) == set(FORMS)


def test_a_shape_is_measured_once_and_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def measured(inputs: int, outputs: int, rows: int, blocks: Blocks) -> dict[str, float]:
        asked.append((inputs, outputs, rows))
        return {"blocks": 2.0, "dynamic": 1.0}

    monkeypatch.setattr(product_speed, "_measured", measured)
    speed = ProductSpeed()
    assert speed.of(64, 32, 5, SYMMETRIC) == {"blocks": 2.0 * 5 / 8, "dynamic": 5 / 8}
    assert speed.of(64, 32, 8, SYMMETRIC) == {"blocks": 2.0, "dynamic": 1.0}
    assert asked == [(64, 32, 8)]
    wide = speed.of(1024, 1 << 16, 3000, SYMMETRIC)
    assert asked[1] == (1024, 4096, 2048)  # 16 MiB of floats, and 2048 rows
    assert wide["dynamic"] == pytest.approx(16 * 3000 / 2048)


def test_a_spent_budget_takes_the_nearest_rows_that_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product_speed, "_measured", lambda i, o, rows, b: {"blocks": rows * 1.0, "dynamic": rows * 0.5})
    speed = ProductSpeed()
    speed.of(64, 32, 1, SYMMETRIC)
    speed.of(64, 32, 1024, SYMMETRIC)
    speed._spent = speed.seconds
    assert speed.of(64, 64, 512, SYMMETRIC) == {"blocks": 1024.0, "dynamic": 512.0}
    assert len(speed._known) == 2
