"""A process that makes and tries mutants, one a line: what crashes or hangs costs this process, not the caller.

Reads [folder or null, seed, mutation, number, skip] lines. Answers with a line for every step that begins, and one with
the outcomes at the end. skip: steps that brought a process down before.
"""

import contextlib
import json
import os
import resource
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fuzzing.core import MUTATIONS, Mutant, Pointless, rng_of
from fuzzing.seeds import feeds_of, seeds

MEMORY = 4 << 30  # address space
_DRAWS = 40  # of other seeds, where a mutation does not apply


def _say(*words: object) -> None:
    sys.__stdout__.write(json.dumps(words) + "\n")  # type: ignore[union-attr]
    sys.__stdout__.flush()  # type: ignore[union-attr]


def made(folder: Path | None, seed: str, mutation: str, number: int, place: Path) -> tuple[Path, list[object]] | None:
    """The file of a mutant and its samples; None where the mutation does not apply to the seed, nor to others drawn."""
    from fuzzing import attributes, inner, values, wiring  # noqa: F401  importing fills MUTATIONS

    known = seeds(folder)
    names = [seed, *rng_of("instead", seed, number).sample(list(known), min(_DRAWS, len(known)))]
    for name in names:
        proto, samples = known[name]()
        mutant = Mutant(proto, rng_of(name, mutation, number), place)
        try:
            MUTATIONS[mutation](mutant)
        except Pointless:
            continue
        path = place / "mutant.onnx"
        path.write_bytes(mutant.proto.SerializeToString())
        if keep := os.environ.get("FUZZ_KEEP"):
            Path(keep, f"{number}.onnx").write_bytes(path.read_bytes())
        _say("begin", f"make of {name}")
        return path, feeds_of(mutant.proto, samples)  # type: ignore[return-value]
    return None


def tried(
    folder: Path | None, seed: str, mutation: str, number: int, skip: list[str], place: Path
) -> dict[str, object]:
    """The outcome of every step."""
    from fuzzing.judge import Truth, attempts, outcome, truth

    _say("begin", "make")
    found = made(folder, seed, mutation, number, place)
    if found is None:
        return {"pointless": ["", ""]}
    path, feeds = found
    _say("begin", "runtime")
    known = Truth(None, None, why="it crashes or hangs") if "runtime" in skip else truth(path, feeds)  # type: ignore[arg-type]
    outcomes: dict[str, object] = {"runtime": ["runs" if known.runs else "refuses", known.why]}
    for name, attempt in attempts(path, feeds, known, number).items():  # type: ignore[arg-type]
        if name in skip:
            continue
        _say("begin", name)
        outcomes[name] = outcome(attempt)
    return outcomes


def main() -> None:
    """Answer every line of stdin."""
    if os.environ.get("FUZZ_MEMORY") != "0":
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import onnxruntime

    import onnxshot  # noqa: F401

    onnxruntime.set_default_logger_severity(4)
    sys.stdout = sys.stderr
    _say("ready")
    for line in sys.stdin:
        folder, seed, mutation, number, skip = json.loads(line)
        with tempfile.TemporaryDirectory(prefix="mutant-") as place:
            _say("end", tried(Path(folder) if folder else None, seed, mutation, number, skip, Path(place)))


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
