"""The figures of language models are those that numpy computes: perplexity, divergence, agreement, with and without
padding and caches."""


import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from tiny_decoders import VOCABULARY, decoder, encoder, logits_of, logs_of, no_past, texts

from onnxshot.calibration.readers import Sample
from onnxshot.comparison.token_outputs import TokenOutput
from onnxshot.graph.lean_model import LeanModel
from onnxshot.runtimes.ort_runtime import Runner
from onnxshot.verification.compare_models import compare
from onnxshot.verification.decoder_feeds import Window
from onnxshot.verification.decoding import STEPS, decode
from onnxshot.verification.decoding_speed import PROMPT, decoding_feeds, time_decoding

NOISE = 0.05
CACHE = TokenOutput("logits", "input_ids", "", {"past.key": "present.key", "past.value": "present.value"})


def samples(**more: NDArray[np.generic]) -> list[Sample]:
    return [Sample(f"#{i}", {"input_ids": ids, **more}) for i, ids in enumerate(texts())]


def losses(logs: NDArray[np.float64], ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """-ln p of the next token of each position but the last, [batch, positions - 1]."""
    return -np.take_along_axis(logs[:, :-1], ids[:, 1:, None], -1)[..., 0]


def test_perplexity_divergence_and_agreement_of_a_decoder() -> None:
    tokens = compare(decoder(), decoder(NOISE), samples()).tokens
    assert tokens is not None
    every = [(ids, logs_of(logits_of(ids)), logs_of(logits_of(ids, noise=NOISE))) for ids in texts()]
    before = np.concatenate([losses(p, ids).ravel() for ids, p, _ in every])
    after = np.concatenate([losses(q, ids).ravel() for ids, _, q in every])
    apart = np.concatenate([(np.exp(p) * (p - q)).sum(-1).ravel() for _, p, q in every])
    same = np.concatenate([(p.argmax(-1) == q.argmax(-1)).ravel() for _, p, q in every])
    assert tokens.causal
    assert (tokens.positions, tokens.scored) == (len(same), len(before))
    assert tokens.float_perplexity == pytest.approx(np.exp(before.mean()), rel=1e-4)
    assert tokens.perplexity == pytest.approx(np.exp(after.mean()), rel=1e-4)
    assert tokens.rise == pytest.approx(np.exp(after.mean() - before.mean()) - 1, abs=1e-4)
    assert tokens.divergence == pytest.approx(apart.mean(), rel=1e-3)
    assert tokens.agreement == same.mean()
    assert 0.5 < same.mean() < 1.0  # else the test shows nothing


def test_padding_is_left_out() -> None:
    ids = np.concatenate(texts(2))
    seen = np.ones_like(ids)
    seen[0, :4] = 0  # padded on the left
    seen[1, -3:] = 0  # on the right
    sample = Sample("#", {"input_ids": ids, "attention_mask": seen})
    found = compare(decoder(mask=True), decoder(NOISE, mask=True), [sample])
    tokens = found.tokens
    assert tokens is not None
    p, q = logs_of(logits_of(ids, seen)), logs_of(logits_of(ids, seen, NOISE))
    kept, known = seen == 1, (seen[:, :-1] & seen[:, 1:]) == 1
    assert (tokens.positions, tokens.scored) == (kept.sum(), known.sum())
    assert tokens.float_perplexity == pytest.approx(np.exp(losses(p, ids)[known].mean()), rel=1e-4)
    assert tokens.perplexity == pytest.approx(np.exp(losses(q, ids)[known].mean()), rel=1e-4)
    assert tokens.divergence == pytest.approx((np.exp(p) * (p - q)).sum(-1)[kept].mean(), rel=1e-3)
    assert tokens.agreement == (p.argmax(-1) == q.argmax(-1))[kept].mean()
    assert found.agreement == tokens.agreement


def test_an_encoder_has_no_perplexity() -> None:
    tokens = compare(encoder(), encoder(NOISE), samples()).tokens
    assert tokens is not None and not tokens.causal
    assert tokens.perplexity is None and tokens.rise is None
    assert tokens.divergence is not None and tokens.divergence > 0


def test_the_logits_are_found_by_the_size_of_the_table() -> None:
    tokens = compare(decoder(logits="scores"), decoder(NOISE, logits="scores"), samples()).tokens
    assert tokens is not None and tokens.output.logits == "scores" and tokens.causal


def test_scores_of_a_candidate_that_are_no_numbers_are_no_perplexity() -> None:
    tokens = compare(decoder(), decoder(float("nan")), samples()).tokens
    assert tokens is not None
    assert tokens.perplexity is None and tokens.agreement == 0.0 and tokens.lost == tokens.positions


@pytest.mark.parametrize("length", [1, 5])
def test_a_text_without_next_tokens_is_not_scored(length: int) -> None:
    ids = texts(1, length)[0]
    tokens = compare(decoder(), decoder(NOISE), [Sample("#", {"input_ids": ids})]).tokens
    assert tokens is not None and tokens.scored == length - 1
    assert (tokens.perplexity is None) == (length == 1)


def test_copied_pasts_are_not_in_the_figures() -> None:
    rng, ids = np.random.default_rng(3), texts(1)[0]
    loud = {f"past.{x}": (1e3 * rng.normal(size=(1, 1, 9, 8))).astype(np.float32) for x in ("key", "value")}
    found = compare(decoder(cache=True), decoder(NOISE, cache=True), [Sample("#", {"input_ids": ids, **loud})])
    rows = {row.name: row for row in found.outputs}
    assert set(found.copied) == {"present.key", "present.value"}
    assert 10 < rows["present.key"].sqnr_db < 35  # the copies would lift it above 60 dB
    assert found.tokens is not None and found.tokens.output.presents == CACHE.presents


def test_steps_on_own_caches_are_those_of_whole_texts() -> None:
    given = samples(**no_past())
    found = decode(Runner(decoder(cache=True)), Runner(decoder(NOISE, cache=True)), given, CACHE)
    assert not found.note
    assert (found.windows, found.prompt, found.steps) == (3, 6, 3 * 6)
    kept = slice(6, 12)
    every = [(ids, logs_of(logits_of(ids)), logs_of(logits_of(ids, noise=NOISE))) for ids in texts()]
    apart = np.concatenate([(np.exp(p) * (p - q)).sum(-1)[:, kept].ravel() for _, p, q in every])
    after = np.concatenate([losses(q, ids)[:, kept].ravel() for ids, _, q in every])
    assert found.scores.scored == len(after) == 3 * 5
    assert found.scores.perplexity == pytest.approx(np.exp(after.mean()), rel=1e-4)
    assert found.scores.divergence == pytest.approx(apart.mean(), rel=1e-3)
    assert found.figures()["perplexity_at_once"] == pytest.approx(found.scores.perplexity, rel=1e-5)


def test_a_cache_that_loses_what_it_is_given_shows() -> None:
    proto = onnx.load_from_string(decoder(cache=True))
    (made,) = (node for node in proto.graph.node if node.output[0] == "present.key")
    made.op_type = "Neg"
    found = decode(Runner(decoder(cache=True)), Runner(proto.SerializeToString()), samples(**no_past()), CACHE)
    figures = found.figures()
    assert figures["perplexity_at_once"] == pytest.approx(figures["float_perplexity"], rel=1e-5)
    assert figures["perplexity"] > 1.1 * figures["perplexity_at_once"]


def test_the_steps_of_a_long_text_are_bounded() -> None:
    given = [Sample("#", {"input_ids": texts(1, 100)[0], **no_past()})]
    found = decode(Runner(decoder(cache=True)), Runner(decoder(NOISE, cache=True)), given, CACHE)
    assert (found.prompt, found.steps) == (50, STEPS)


def test_a_padded_batch_is_decoded_with_its_mask() -> None:
    ids = np.concatenate(texts(2))
    seen = np.ones_like(ids)
    seen[0, :4] = 0
    given = [Sample("#", {"input_ids": ids, "attention_mask": seen, **no_past(2)})]
    output = TokenOutput("logits", "input_ids", "attention_mask", CACHE.presents)
    one, other = Runner(decoder(cache=True, mask=True)), Runner(decoder(NOISE, cache=True, mask=True))
    found = decode(one, other, given, output)
    p, q = logs_of(logits_of(ids, seen)), logs_of(logits_of(ids, seen, NOISE))
    assert found.scores.divergence == pytest.approx((np.exp(p) * (p - q)).sum(-1)[:, 6:].mean(), rel=1e-3)


def test_a_model_that_lacks_a_cache_leaves_a_note() -> None:
    found = decode(Runner(decoder(cache=True)), Runner(decoder()), samples(**no_past()), CACHE)
    assert not found.figures() and "present.key" in found.note


def test_too_short_texts_leave_a_note() -> None:
    given = [Sample("#", {"input_ids": texts(1, 3)[0], **no_past()})]
    found = decode(Runner(decoder(cache=True)), Runner(decoder(cache=True)), given, CACHE)
    assert not found.figures() and "no sample" in found.note


def test_a_prompt_and_a_token_are_timed_behind_the_same_pasts() -> None:
    feed, model = samples(**no_past())[0].feed, LeanModel.of(decoder(cache=True))
    prompt, token = decoding_feeds(model, feed, CACHE)
    assert prompt["input_ids"].shape == (1, PROMPT) and prompt["past.key"].shape[2] == 0
    assert token["input_ids"].shape == (1, 1) and token["past.key"].shape[2] == PROMPT
    wanted = Runner(model).run(prompt)["present.key"]
    np.testing.assert_array_equal(token["past.key"], wanted)
    other = LeanModel.of(decoder(NOISE, cache=True))
    before, after = time_decoding([model, other], feed, CACHE, rounds=3, seconds=0.01)
    assert before[0].ratio == before[1].ratio == 1.0
    assert after[0].rounds == after[1].rounds == 3
    assert after[1].cpu_ms is not None and after[1].cpu_ms > 0


def test_positions_masks_and_switches_follow_the_step() -> None:
    ids = np.arange(10)[None] % VOCABULARY
    feed = {
        "input_ids": ids, "attention_mask": np.ones((1, 13), np.int64), "position_ids": np.arange(3, 13)[None],
        "cache_position": np.arange(3, 13), "use_cache_branch": np.array([True]),
        "past.key": np.zeros((1, 1, 3, 8), np.float32), "past.value": np.zeros((1, 1, 3, 8), np.float32),
        "encoder_attention_mask": np.ones((1, 10), np.int64), "encoder_hidden_states": np.zeros((1, 10, 4), np.float32),
    }  # fmt: skip
    window = Window(TokenOutput("logits", "input_ids", "attention_mask", CACHE.presents), feed)
    assert window.before == 3
    pasts = {"past.key": np.ones((1, 1, 8, 8), np.float32), "past.value": np.ones((1, 1, 8, 8), np.float32)}
    got = window.part(5, 6, pasts)
    assert got["input_ids"].tolist() == [[5]]
    assert got["position_ids"].tolist() == [[8]] and got["cache_position"].tolist() == [8]
    assert got["attention_mask"].shape == (1, 9)
    assert got["past.key"] is pasts["past.key"]
    assert got["encoder_attention_mask"].shape == (1, 10) and got["encoder_hidden_states"].shape == (1, 10, 4)
    longer = window.of_length(20)
    assert longer.before == 0 and longer.ids.shape == (1, 20)
    assert longer.feed["position_ids"].tolist() == [list(range(20))]
    assert longer.feed["attention_mask"].shape == (1, 20) and longer.feed["past.key"].shape[2] == 0
