"""What a target is: the rules a quantized graph must obey to run fast and right there. Data, no code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from onnxshot.maths.affine import QuantScheme, QuantType
from onnxshot.runtimes.base import Runtime


@dataclass(frozen=True, slots=True)
class Target:
    """The rules of one runtime.

    Attributes:
        name: what `--target` calls it.
        activation: default scheme of activations.
        weight: default scheme of weights; its axis is set per op.
        types: (activation, weight) type names the target computes in; all others are refused before calibration.
        refused: why a pair is refused, by activation or weight type name, or by such as 'uint8 weights'; why floats of
            16 bits are, by theirs.
        symmetric: activation types that get zero point 0 there whatever the default scheme says.
        static: ops with a weight that run in int8 with fixed activation scales.
        dynamic: ops with a weight that run in int8 with activation scales taken at run time.
        contrib: ops it runs in int8 through an operator of its own; only on request: no other runtime reads them.
        prefers_dynamic: such ops are quantized dynamically where no int8 op stands next to them.
        followers: ops without a weight that run in int8, worth it only between int8 ops.
        slow_thin: a Conv with few channels in a group is slower in int8 than in float: it pays only between int8 ops,
            or not even there.
        slow_pools: an AveragePool with more than one position of output is slower in int8, also between int8 ops.
        reducers: followers whose output is so much smaller that they pay although a float op reads it.
        quantizes_outputs: an int8 op needs a Q on its output (after a Relu or Clip that follows it) to be fused.
        stores_biases: biases of int8 layers are stored as int32, as its older versions fuse no float ones.
        gives_float: ops that are fused without a Q on their output too, and then give floats; of them a Gemm without a
            float bias, and a MatMul that no Add behind it makes a Gemm with one.
        input_grids: an input may be quantized with a scale per channel in front of an int8 op that knows one only.
        quantizes_residuals: the shortcut input of a residual Add gets a Q/DQ pair of its own.
        isolates_softmax: a Softmax between Transposes must be kept on the last axis by hand.
        float_reasons: ops left in float on purpose, and the reason a report gives.
        min_dynamic_weights: weights with fewer elements are not worth a dynamic kernel's overhead.
        smooth_below_db: a dynamic op whose input would keep less than this SQNR in dB, as one scale must hold outliers,
            has them moved into its weight.
        gathers_floats: it has no int8 Gather: an embedding's table is dequantized in front of it, not its rows behind.
        stores_weights: it makes floats of int8 -> Cast -> Mul once, when it loads a file, so that weights of ops in
            float can be stored in 8 bits at no cost of time.
        reads_constants: ops of which it does not, in a file with quantized activations: it refuses the file.
        everywhere: its file is for every runtime: all that are installed are asked what they make of it.
        runs_here: its runtime is the one the proof uses, so that speed and precision can be told.
        runtime: what makes artifacts of another format than .onnx for it, and runs them.
        emits: the format that it is written in where nobody says which.
        keeps_half: models that compute in floats of 16 bits are run as they are; elsewhere they are widened to float32.
        half_note: what a user should know of models in floats of 16 bits there.
        note: what a user should know before deploying there.
    """

    name: str
    activation: QuantScheme
    weight: QuantScheme
    types: frozenset[tuple[str, str]]
    static: frozenset[str]
    symmetric: frozenset[str] = frozenset()
    dynamic: frozenset[str] = frozenset()
    contrib: frozenset[str] = frozenset()
    prefers_dynamic: bool = False
    followers: frozenset[str] = frozenset()
    slow_thin: bool = False
    slow_pools: bool = False
    reducers: frozenset[str] = frozenset()
    quantizes_outputs: bool = True
    stores_biases: bool = False
    gives_float: frozenset[str] = frozenset()
    input_grids: bool = False
    quantizes_residuals: bool = False
    isolates_softmax: bool = False
    float_reasons: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    min_dynamic_weights: int = 4096
    smooth_below_db: float = 32.0
    gathers_floats: bool = False
    stores_weights: bool = False
    reads_constants: frozenset[str] = frozenset()
    everywhere: bool = False
    runs_here: bool = True
    runtime: Runtime | None = None
    emits: str = "onnx"
    keeps_half: bool = False
    half_note: str = ""
    note: str = ""

    def accepts(self, activation: QuantType, weight: QuantType) -> str:
        """Empty where the target runs this pair in int8, else the reason it does not."""
        if (activation.name, weight.name) in self.types:
            return ""
        for name in (f"{weight.name} weights", activation.name, weight.name):
            if name in self.refused:
                return self.refused[name]
        runs = ", ".join(sorted(f"{a} x {w}" for a, w in self.types))
        return f"{self.name} has no kernel for {activation.name} activations with {weight.name} weights; it runs {runs}"
