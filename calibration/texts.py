"""How readers hand texts over to what makes samples of them, which takes more than the inputs of the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from onnxshot.calibration.checks import InputSpec
from onnxshot.calibration.sources import Source
from onnxshot.calibration.text_files import Text, is_record
from onnxshot.calibration.text_preset import TextPreset
from onnxshot.errors import CalibrationError


class Words(Protocol):
    """Makes samples of texts, which takes more than the inputs of the model; see `execution.text_samples`."""

    def __call__(
        self, label: str, read: Callable[[str | None], list[Text]], specs: Sequence[InputSpec],
        preset: TextPreset | None, limit: int | None,
    ) -> Source:  # fmt: skip
        """Make samples.

        Args:
            label: the texts in messages.
            read: gives the texts; its argument is the field of the text in a .jsonl file.
            specs: inputs of the model.
            preset: tokenizer, length and field; None for the defaults.
            limit: most samples.
        """


@dataclass(frozen=True, slots=True)
class Texts:
    """What is known when texts are found."""

    label: str
    specs: tuple[InputSpec, ...]
    preset: object
    limit: int | None
    words: Words | None

    def found(self, item: object) -> bool:
        """Whether an item of the caller's data is text."""
        return is_record(item, self.specs)

    def open(self, read: Callable[[str | None], list[Text]]) -> Source:
        """Make samples of texts."""
        preset = self.preset
        if preset is not None and not isinstance(preset, TextPreset):
            what = f"{self.label} holds texts; preset {getattr(preset, 'name', preset)} is not of texts"
            hint = "use [[tokenizer=FILE]] and [[length=TOKENS]], or a .yaml file with kind: text"
            raise CalibrationError(what, hint)
        if self.words is None:
            raise CalibrationError(f"{self.label} holds texts, which are not taken here", "give arrays")
        return self.words(self.label, read, self.specs, preset, self.limit)
