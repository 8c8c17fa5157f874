"""Check that two models can be compared, and say what makes a comparison pointless."""

from __future__ import annotations

from collections.abc import Collection

from onnxshot.errors import UsageError
from onnxshot.execution.statistics_cache import model_hash
from onnxshot.files.messages import shown
from onnxshot.graph import Model
from onnxshot.graph.integer_weights import weights_in_bytes
from onnxshot.planning.make_plan import already_quantized
from onnxshot.verification.io_contract import Port, contract

_MOST = 3  # inputs and differences in a message
_ANY_FLOAT = "bfloat16"  # widened to float32 where ONNX Runtime lacks it


def refuse_other_inputs(reference: Model, candidate: Model, names: tuple[str, str]) -> None:
    """Raise UsageError where samples of the reference do not fit the inputs of the candidate. Inputs may be missing.

    Args:
        reference: the model whose inputs the samples fit.
        candidate: the other one.
        names: of both, in messages.
    """
    known = {port.name: port for port in contract(reference) if port.way == "input"}
    given = {port.name: port for port in contract(candidate) if port.way == "input"}
    lacking = [name for name in given if name not in known]
    said = [f"it takes {_listed(lacking)}, the other takes {_listed(known)}"] if lacking else []
    said += [f"{port} against {known[name]}" for name, port in given.items() if not _fits(port, known.get(name, port))]
    if said:
        what = f"{shown(names[1])} has other inputs than {shown(names[0])}: {'; '.join(said[:_MOST])}"
        raise UsageError(what, "give two models of the same inputs")


def pair_notes(reference: Model, candidate: Model, names: tuple[str, str]) -> list[str]:
    """Notes where both are the same model, or the reference is quantized and the candidate is not."""
    if reference.weight_bytes() == candidate.weight_bytes() and model_hash(reference) == model_hash(candidate):
        return ["both files hold the same model, which is compared with itself"]
    if _is_quantized(reference) and not _is_quantized(candidate):
        one, other = (shown(name) for name in names)
        return [f"{one}, the reference, is quantized and {other} is not: the float model comes first"]
    return []


def _is_quantized(model: Model) -> bool:
    return bool(already_quantized(model) or weights_in_bytes(model))


def _listed(names: Collection[str]) -> str:
    """A few names, and how many more there are."""
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return ", ".join(map(shown, list(names)[:_MOST])) + more


def _fits(port: Port, other: Port) -> bool:
    """Whether an array for the one input may be given to the other."""
    if port.type != other.type and _ANY_FLOAT not in (port.type, other.type):
        return False
    if port.dims is None or other.dims is None:
        return True
    sizes = zip(port.dims, other.dims, strict=False)
    fixed = [(a, b) for a, b in sizes if isinstance(a, int) and isinstance(b, int)]
    return len(port.dims) == len(other.dims) and all(a == b for a, b in fixed)
