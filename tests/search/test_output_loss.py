"""Losses of outputs: divergence of logits, noise over signal elsewhere, and that losses of layers add up."""

import numpy as np
import pytest
from handmade.core import feeds, model
from loud_layer import LOUD, network
from tiny_decoders import decoder, logits_of, logs_of, texts

from onnxshot.calibration.readers import Sample
from onnxshot.search.output_loss import OutputLoss


def test_logits_lose_divergence() -> None:
    ids = texts(3)
    loss = OutputLoss(decoder(), [Sample(str(i), {"input_ids": x}) for i, x in enumerate(ids)], 1)
    assert loss.in_nats
    found = loss.of(decoder(0.1))
    expected = []
    for x in ids[: loss.used]:
        p, q = logs_of(logits_of(x)), logs_of(logits_of(x, noise=0.1))
        expected.append((np.exp(p) * (p - q)).sum(-1).ravel())
    assert found == pytest.approx(np.concatenate(expected).mean(), rel=1e-4)
    assert loss.of(decoder()) == pytest.approx(0.0, abs=1e-9)


def test_padding_is_left_out() -> None:
    (ids,) = texts(1)
    mask = np.ones_like(ids)
    mask[:, :5] = 0
    samples = [Sample("a", {"input_ids": ids, "attention_mask": mask})]
    loss = OutputLoss(decoder(mask=True), samples, 1)
    p, q = logs_of(logits_of(ids, mask)), logs_of(logits_of(ids, mask, noise=0.1))
    expected = (np.exp(p) * (p - q)).sum(-1)[:, 5:].mean()
    assert loss.of(decoder(0.1, mask=True)) == pytest.approx(expected, rel=1e-4)


def test_other_outputs_lose_noise_over_signal_each_by_its_own_scale() -> None:
    def two(noise: float) -> bytes:
        text = "g (float[N,8] x) => (float[N,8] a, float[N,8] b) { a = Mul(x, p)\nb = Mul(x, q) }"
        held = {"p": np.float32(1000 * (1 + noise)), "q": np.float32(0.5)}
        return bytes(model(text, held).SerializeToString())

    samples = [Sample(str(i), feed) for i, feed in enumerate(feeds(4, x=(2, 8)))]
    loss = OutputLoss(two(0.0), samples, 1)
    assert not loss.in_nats
    assert loss.of(two(0.1)) == pytest.approx(0.01 / 2, rel=1e-4)


def test_losses_of_layers_add_up() -> None:
    samples = [Sample(str(i), feed) for i, feed in enumerate(feeds(8, x=(6, 256)))]
    loss = OutputLoss(network().SerializeToString(), samples, 1)
    rng = np.random.default_rng(5)
    noise = {f"w{i}": rng.normal(0, 0.02, (256, 96)) * (1 + 7 * (i == LOUD)) for i in range(6)}

    def changed(*names: str) -> bytes:
        proto = network()
        for tensor in proto.graph.initializer:
            if tensor.name in names:
                values = np.frombuffer(tensor.raw_data, np.float32).reshape(256, 96) + noise[tensor.name]
                tensor.raw_data = values.astype(np.float32).tobytes()
        return bytes(proto.SerializeToString())

    alone = [loss.of(changed(name)) for name in noise]
    assert sum(alone) == pytest.approx(loss.of(changed(*noise)), rel=0.1)
    assert max(alone) == alone[LOUD]
