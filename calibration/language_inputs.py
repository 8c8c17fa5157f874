"""What each input of a language model takes, told from names, ranks, types and outputs; and feeds made of token ids."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.calibration.checks import Dims, InputSpec, is_float
from onnxshot.errors import CalibrationError

Values = Mapping[str, NDArray[Any]]
_IDS = re.compile(r"(.*[._/])?(input_?ids|ids|tokens|token_ids|input_tokens)")
_DECODER_IDS = re.compile(r"decoder_(input_)?ids|target_ids|tgt_ids")
_MASK = re.compile(r"(.*[._/])?(attention_mask|input_mask|mask|padding_mask)")
_TYPES = re.compile(r"(.*[._/])?(token_type_ids|segment_ids|type_ids)")
_POSITIONS = re.compile(r"(.*[._/])?(position_ids|positions|cache_position)")
_KEPT_LOGITS = re.compile(r"(num_)?logits_to_keep")
_PAST = re.compile(r"past|cache_[kv]|(key|value)_cache", re.IGNORECASE)
_CROSS = re.compile(r"encoder|cross", re.IGNORECASE)
_SOUND = re.compile(r"input_features|input_values|mel|audio(_features)?|waveform")
_BRANCH = "use_cache_branch"
_WORDS_OF_LENGTH = ("past", "seq", "total", "len", "cache")


@dataclass(frozen=True, slots=True)
class Past:
    """One input that holds what the model has seen so far: keys, values, or another state.

    Attributes:
        spec: the input.
        present: the output that is fed back to it; None where there is none.
        axis: the axis that grows with the tokens; None for a state of a fixed size.
        shape: its shape with 0 tokens; that of the state where axis is None.
        cross: whether it holds keys or values of an encoder's output, which do not grow.
    """

    spec: InputSpec
    present: str | None
    axis: int | None
    shape: tuple[int, ...]
    cross: bool = False


@dataclass(frozen=True, slots=True)
class LanguageInputs:
    """The inputs of a language model by what they take.

    Attributes:
        ids: takes the tokens; of a decoder with an encoder in the same graph, those of the decoder.
        source: takes the tokens of the encoder in the same graph; None where there is no such input.
        masks: 1 for each token, seen and new.
        source_masks: 1 for each token of the encoder.
        types: the numbers of segments.
        positions: the positions of the new tokens.
        kept_logits: how many logits to return; 0 stands for all.
        branch: whether the pasts are used.
        pasts: what was seen so far.
        crosses: what an encoder, which is another file, has made.
        sounds: take sound, beside the tokens of a decoder in the same graph.
    """

    ids: InputSpec
    source: InputSpec | None = None
    masks: tuple[InputSpec, ...] = ()
    source_masks: tuple[InputSpec, ...] = ()
    types: tuple[InputSpec, ...] = ()
    positions: tuple[InputSpec, ...] = ()
    kept_logits: tuple[InputSpec, ...] = ()
    branch: InputSpec | None = None
    pasts: tuple[Past, ...] = ()
    crosses: tuple[InputSpec, ...] = ()
    sounds: tuple[InputSpec, ...] = ()

    @property
    def window(self) -> int | None:
        """The number of new tokens that the model is fixed to; None where it takes any number."""
        return _fixed(self.ids)

    @property
    def source_window(self) -> int | None:
        """The number of tokens of the encoder that the graph is fixed to; None where it takes any number."""
        return _fixed(self.source) if self.source is not None else None

    @property
    def grows(self) -> bool:
        """Whether the model can be run with what it has seen so far."""
        own = [past for past in self.pasts if not past.cross]
        return bool(own) and all(past.present is not None for past in own)

    @property
    def needs_encoder(self) -> bool:
        """Whether inputs must come from an encoder that is another file."""
        return not self.sounds and (bool(self.crosses) or any(past.cross for past in self.pasts))

    @property
    def steps_only(self) -> bool:
        """Whether the graph lacks the part that reads what an encoder made, so that it needs the keys of a prompt."""
        return any(past.cross for past in self.pasts) and not self.crosses and self.branch is None

    def feed(
        self, ids: Sequence[int], *, seen: int = 0, pasts: Values | None = None, pad: int = 0,
        types: Sequence[int] | None = None, source: Sequence[int] | None = None, crosses: Values | None = None,
        source_mask: Sequence[int] | None = None, width: int | None = None,
    ) -> dict[str, NDArray[Any]]:  # fmt: skip
        """The arrays of one run, with a batch of 1.

        Args:
            ids: the new tokens, fewer than `width` or equal to it.
            seen: tokens that the pasts stand for.
            pasts: arrays of the pasts by input name; None for empty ones.
            pad: the id that fills ids up.
            types: the segment of each new token; None for 0.
            source: tokens of the encoder in the same graph.
            crosses: arrays that an encoder has made, by input name.
            source_mask: 1 for each token of the encoder, 0 for filling; None for ones.
            width: new tokens with the filling; None for the fixed number, or as many as there are ids.
        """
        width = width or self.window or len(ids)
        fill = width - len(ids)
        feed = {self.ids.name: _row([*ids, *[pad] * fill], self.ids)}
        room = self._room(seen)
        for spec in self.masks:
            row = [*[0] * (room - seen), *[1] * min(seen, room), *[1] * len(ids), *[0] * fill]
            feed[spec.name] = _row(row[-(_fixed(spec) or len(row)) :], spec)  # some take that of the new tokens alone
        for spec in self.types:
            feed[spec.name] = _row([*(types or [0] * len(ids)), *[0] * fill], spec)
        for spec in self.positions:
            feed[spec.name] = _row(range(seen, seen + width), spec)
        for spec in self.kept_logits:
            feed[spec.name] = np.zeros([1] * len(spec.shape or ()), spec.dtype)
        if self.branch is not None:
            feed[self.branch.name] = np.full([1] * len(self.branch.shape or (0,)), pasts is not None, bool)
        for past in self.pasts:
            given = None if pasts is None else pasts.get(past.spec.name)
            feed[past.spec.name] = np.zeros(past.shape, past.spec.dtype) if given is None else given
        source_width = self.source_window or len(source or ())
        if self.source is not None:
            own = list(source or ())[:source_width]
            source_mask = [*[1] * len(own), *[0] * (source_width - len(own))]
            feed[self.source.name] = _row([*own, *[pad] * (source_width - len(own))], self.source)
        for spec in self.source_masks:
            feed[spec.name] = _row(source_mask if source_mask is not None else [1], spec)
        for spec in (*self.crosses, *self.sounds):
            feed[spec.name] = np.asarray(_needed(crosses, spec.name)).astype(spec.dtype, copy=False)
        return feed

    def _room(self, seen: int) -> int:
        """Tokens that the pasts stand for, with those of a room of a fixed size that the mask leaves out."""
        own = [past for past in self.pasts if not past.cross]
        if any(past.axis is not None for past in own):
            return seen
        rooms = [past.shape[2] for past in own if len(past.shape) == 4]
        return rooms[0] if rooms else seen

    def pasts_of(self, outputs: Values, before: Values | None = None) -> dict[str, NDArray[Any]]:
        """What a run has made, as the pasts of the next run.

        Args:
            outputs: outputs of the run by name.
            before: the pasts of the run; a past of an encoder that the run does not repeat is kept.
        """
        found = {}
        for past in self.pasts:
            made = outputs.get(past.present) if past.present is not None else None
            if made is None or (past.cross and not made.size):
                made = _needed(before, past.spec.name)
            if past.axis is None and made.shape != past.shape and not past.cross:
                made = _last(made, past.shape)
            if past.cross and before is not None and past.spec.name in before:
                made = before[past.spec.name]  # a step gives an empty one
            found[past.spec.name] = np.ascontiguousarray(made).astype(past.spec.dtype, copy=False)
        return found


def _needed(values: Values | None, name: str) -> NDArray[Any]:
    if values is None or name not in values:
        what = f"input {name!r} takes what an encoder makes, and nothing makes it"
        raise CalibrationError(what, "keep its file beside the model, or give .npz files that hold every input")
    return values[name]


def _last(made: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """The last part of what a run has made, along the axes on which it is larger than its input."""
    if made.ndim != len(shape) or any(have < want for have, want in zip(made.shape, shape, strict=True)):
        raise CalibrationError(f"an output of shape {list(made.shape)} is no past of shape {list(shape)}")
    return made[tuple(slice(have - want, have) for have, want in zip(made.shape, shape, strict=True))]


def _fixed(spec: InputSpec) -> int | None:
    last = spec.shape[-1] if spec.shape else None
    return last if isinstance(last, int) and last > 0 else None


def _row(values: Sequence[int] | range, spec: InputSpec) -> NDArray[Any]:
    """Numbers as an input of rank 1, 2, 3 (with copies along its first axis) or 4 takes them."""
    row = np.asarray(values).astype(spec.dtype)
    rank = 2 if spec.shape is None else len(spec.shape)
    if rank == 3 and spec.shape is not None and isinstance(spec.shape[0], int):
        return np.ascontiguousarray(np.broadcast_to(row, (spec.shape[0], 1, len(row))))
    return row.reshape([1] * (rank - 1) + [-1])


def takes_text(specs: Sequence[InputSpec]) -> bool:
    """Whether one of the inputs takes tokens."""
    return _ids(specs, _IDS) is not None or _ids(specs, _DECODER_IDS) is not None


def language_inputs(
    specs: Sequence[InputSpec], outputs: Sequence[str], sizes: Mapping[str, int] | None = None
) -> LanguageInputs:
    """Tell what each input takes.

    Args:
        specs: the inputs of the model.
        outputs: names of its outputs.
        sizes: sizes that the model's configuration tells, of dimensions that the graph leaves open: 'heads' and 'head'.

    Raises:
        CalibrationError: no input takes tokens, or one takes something that cannot be made from text.
    """
    decoder = _ids(specs, _DECODER_IDS)
    ids = _ids(specs, _IDS)
    if ids is None and decoder is None:
        listed = ", ".join(f"{s.name!r} {s}" for s in specs)
        raise CalibrationError(f"no input of the model takes the tokens of a text: {listed}", "give .npz files instead")
    source = ids if decoder is not None else None
    main = decoder if decoder is not None else ids
    assert main is not None  # checked above
    _check_batch(main)
    found: dict[str, list[Any]] = {
        key: [] for key in ("masks", "source_masks", "types", "positions", "kept_logits", "pasts", "crosses", "sounds")
    }
    branch = None
    for spec in specs:
        if spec is main or spec is source:
            continue
        role = _role(spec, source is not None)
        if role == "branch":
            branch = spec
        elif role == "pasts":
            found[role].append(_past(spec, outputs, specs, sizes or {}))
        elif role:
            found[role].append(spec)
        else:
            what = f"input {spec.name!r} expects {spec}, and a text does not tell it"
            raise CalibrationError(what, "give .npz files that hold every input")
    return LanguageInputs(main, source, branch=branch, **{key: tuple(values) for key, values in found.items()})


def _ids(specs: Sequence[InputSpec], names: re.Pattern[str]) -> InputSpec | None:
    """The input of integers whose name matches; any only input of integers of rank 2 stands for the usual names."""
    whole = [s for s in specs if s.dtype.kind in "iu" and (s.shape is None or 1 <= len(s.shape) <= 2)]
    if names is _IDS:
        whole = [s for s in whole if not _DECODER_IDS.fullmatch(s.name.lower())]
    named = next((s for s in whole if names.fullmatch(s.name.lower())), None)
    if named is not None or names is not _IDS:
        return named
    rest = [s for s in whole if not _role(s, False)]
    return rest[0] if len(rest) == 1 and rest[0].dtype.itemsize >= 4 and len(rest[0].shape or (0, 0)) == 2 else None


def _role(spec: InputSpec, with_source: bool) -> str:
    """What an input beside the tokens takes, as the name of a field; empty where it is not known."""
    name = spec.name.lower()
    if name == _BRANCH:
        return "branch"
    if _MASK.fullmatch(name) or name in ("encoder_attention_mask", "decoder_attention_mask"):
        if spec.shape is not None and len(spec.shape) > 2:
            return ""
        own = name == "decoder_attention_mask" or (not with_source and name != "encoder_attention_mask")
        return "masks" if own else "source_masks"
    for role, names in (("types", _TYPES), ("positions", _POSITIONS), ("kept_logits", _KEPT_LOGITS)):
        if names.fullmatch(name) and spec.dtype.kind in "iu":
            return role
    if not is_float(spec.dtype):
        return ""
    if _PAST.search(name):
        return "pasts"
    if _SOUND.fullmatch(name):
        return "sounds"
    return "crosses" if _CROSS.search(name) or name == "last_hidden_state" else ""


def _check_batch(spec: InputSpec) -> None:
    first = spec.shape[0] if spec.shape and len(spec.shape) == 2 else 1
    if isinstance(first, int) and first > 1:
        what = f"input {spec.name!r} takes {first} texts at a time, and a sample is one"
        raise CalibrationError(what, "export it with a free batch axis, or give .npz files that hold every input")


def _past(spec: InputSpec, outputs: Sequence[str], specs: Sequence[InputSpec], sizes: Mapping[str, int]) -> Past:
    present = _present(spec.name, outputs, [s.name for s in specs if _PAST.search(s.name)])
    cross = bool(_CROSS.search(spec.name))
    if spec.shape is None:
        raise CalibrationError(f"input {spec.name!r} has no known rank: no past can be made for it", "give .npz files")
    axis = _growing(spec.shape)
    shape = []
    for i, dim in enumerate(spec.shape):
        known: int | None
        if isinstance(dim, int):
            known = dim
        else:
            known = 0 if i == axis else 1 if i == 0 or _is_batch(dim) else _told(i, spec.shape, sizes)
        if known is None:
            what = f"input {spec.name!r} expects {spec}, whose axis {i} nothing tells"
            raise CalibrationError(what, "keep config.json beside the model, or give .npz files")
        shape.append(known)
    return Past(spec, present, axis, tuple(shape), cross)


def _growing(shape: Dims) -> int | None:
    """The axis of the tokens: a free one that is named after a length, else the one before the last, else the last."""
    free = [i for i, dim in enumerate(shape) if i > 0 and not isinstance(dim, int) and not _is_batch(dim)]
    named = [i for i in free if any(word in str(shape[i]).lower() for word in _WORDS_OF_LENGTH)]
    before_last = [i for i in free if i == len(shape) - 2]
    return next(iter((*named, *before_last, *free[-1:])), None)


def _is_batch(dim: int | str | None) -> bool:
    return "batch" in str(dim).lower()


def _told(axis: int, shape: Dims, sizes: Mapping[str, int]) -> int | None:
    """The size of a free axis as the configuration tells it: that of heads, or that of one head."""
    return sizes.get("head") if axis == len(shape) - 1 else sizes.get("heads")


def _core(name: str) -> str:
    return re.sub(r"(past|present)(_key_values?)?s?|(?<=[._])(in|out)(?=[._]|$)", "", name.lower()).strip("._")


def _present(name: str, outputs: Sequence[str], pasts: Sequence[str]) -> str | None:
    """The output that goes with a past: of the same name with 'present' for 'past', else at the same place."""
    presents = [output for output in outputs if "present" in output.lower() or _PAST.search(output)]
    by_core = {_core(output): output for output in presents}
    if (found := by_core.get(_core(name))) is not None:
        return found
    return presents[pasts.index(name)] if len(presents) == len(pasts) else None
