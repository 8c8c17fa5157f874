"""A language model in 4 bits, as a folder that optimum and transformers.js load: `python examples/llm_4bits.py`.

Needs `pip install 'onnxshot[text]'`. The folder holds the model, its configuration and its tokenizer; the samples are
a plain text file. Both models then write a few words behind the same prompt.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

import onnxshot

FOLDER = Path(__file__).resolve().parents[1] / "fixtures" / "language"
PROMPT = "This License does not grant permission to use the"


def written(model: Path, words: int = 16) -> str:
    """The prompt and what a model writes behind it, always taking the likeliest token."""
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    session = onnxruntime.InferenceSession(model)
    caches = [each for each in session.get_inputs() if each.name.startswith("past")]
    past = {each.name: np.zeros((1, each.shape[1], 0, each.shape[3]), np.float32) for each in caches}
    ids = tokenizer.encode(PROMPT).ids
    new, names = list(ids), [each.name for each in session.get_outputs()]
    for _ in range(words):
        positions = list(range(len(ids)))[-len(new) :]
        rows = {"input_ids": new, "attention_mask": [1] * len(ids), "position_ids": positions}
        given = {name: np.array([row], np.int64) for name, row in rows.items()}
        found = dict(zip(names, session.run(None, given | past), strict=True))
        past = {name: found[name.replace("past_key_values", "present")] for name in past}
        new = [int(found["logits"][0, -1].argmax())]
        ids += new
    return tokenizer.decode(ids)


def main(out: Path) -> None:
    """Quantize the folder, and print size, perplexity and text."""
    made = out / "language-q4"
    settings = onnxshot.Settings(search_seconds=0)  # what is asked for, and nothing else
    found = onnxshot.quantize_folder(FOLDER, FOLDER / "calib.txt", output=made, bits=4, settings=settings)
    (report,) = found.reports.values()
    tokens = report.tokens
    print(f"perplexity  {tokens['float_perplexity']:.3f} -> {tokens['perplexity']:.3f} a token, on held-out text")
    for name, file in (("float", FOLDER / "onnx" / "model.onnx"), ("4 bits", made / "onnx" / "model_q4.onnx")):
        print(f"{name:<11} {file.stat().st_size / 1e6:.2f} MB  {written(file)!r}")


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
    folder.mkdir(parents=True, exist_ok=True)
    main(folder)
