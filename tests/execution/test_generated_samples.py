import numpy as np
import pytest
from handmade.core import model, weight

from onnxshot.execution.generated_samples import generated_samples
from onnxshot.graph.load import load_model


def test_tokens_are_drawn_from_the_whole_table_and_fit_the_other_inputs() -> None:
    proto = model(
        """g (int64[batch, sequence] input_ids, int64[batch, total] attention_mask, float[batch, 2, past, 4] past_key)
           => (float[batch, sequence, 8] y, float[batch, 2, total, 4] present_key) {
            y = Gather(table, input_ids)
            k = Identity(past_key)
            present_key = Identity(k)
        }""",
        {"table": weight(300, 8)},
    )
    samples, words = generated_samples(load_model(proto))
    assert words == "16 windows of 256 random tokens"
    assert len(samples) == 16
    ids = np.concatenate([sample["input_ids"] for sample in samples])
    assert ids.shape == (16, 256)
    assert (ids.min(), ids.max()) == (0, 299)
    assert abs(ids.mean() - 149.5) < 5
    assert all(sample["attention_mask"].tolist() == [[1] * 256] for sample in samples)
    assert all(sample["past_key"].shape == (1, 2, 0, 4) for sample in samples)


def test_models_of_sound_get_what_their_form_takes() -> None:
    proto = model("g (float[1, 80, 3000] mel) => (float[1, 80, 3000] y) { y = Relu(mel) }")
    samples, words = generated_samples(load_model(proto))
    assert words == "3 windows of synthetic sound"
    assert [sample["mel"].shape for sample in samples] == [(1, 80, 3000)] * 3
    spans = [float(sample["mel"].max() - sample["mel"].min()) for sample in samples]
    assert all(0 < span <= 2.001 for span in spans), "log10 of powers, eight decades at most, divided by four"


@pytest.mark.parametrize("shape", ["1, 3, 8, 8", "T, 64", "1, N"])
def test_other_models_get_none(shape: str) -> None:
    proto = model(f"g (float[{shape}] x) => (float[{shape}] y) {{ y = Relu(x) }}")
    assert generated_samples(load_model(proto)) == ([], "")
