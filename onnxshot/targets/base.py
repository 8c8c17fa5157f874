"""The rules that a quantized graph must obey to run fast and correctly in one runtime. Data, no code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from onnxshot.maths.affine import QuantScheme, QuantType
from onnxshot.recipes.vocabulary import FormatName, TargetName
from onnxshot.runtimes.base import Runtime


@dataclass(frozen=True, slots=True)
class Target:
    """The rules of one runtime, which planning and passes read.

    A scheme is an integer type with symmetry and granularity (`onnxshot.maths.affine.QuantScheme`). Operators are given
    by their ONNX type. "Static" means calibrated activation scales, "dynamic" means scales computed at run time.

    Attributes:
        name: name in `--target`.
        activation: default scheme of activations.
        weight: default scheme of weights. Planning sets the channel axis per operator.
        types: (activation type, weight type) names that the target computes in, for example ("uint8", "int8"). All
            other pairs are refused before calibration.
        static: operators with a weight that have a static int8 kernel.
        symmetric: activation types that get zero point 0 even if `activation` is asymmetric.
        dynamic: operators with a weight that have a dynamic int8 kernel.
        contrib: operators that run in int8 only as an operator of this runtime (com.microsoft). They are quantized on
            request (`include`), as no other runtime loads the file.
        prefers_dynamic: whether operators in `dynamic` are quantized dynamically if no neighbour is int8.
        followers: operators without a weight that have an int8 kernel. They are quantized only between int8 nodes.
        slow_thin: whether a Conv with few channels per group may be slower in int8 than in float (slow_convs.py).
        slow_pools: whether an AveragePool with more than one output position is always slower in int8.
        reducers: followers with an output so small that they pay even if a float node reads it.
        quantizes_outputs: whether an int8 node needs a Q on its output, after its Relu or Clip, to be fused.
        stores_biases: whether biases of int8 layers are stored as int32, as older versions do not fuse float biases.
        gives_float: operators that are also fused without a Q on their output, and then produce floats. Exceptions: a
            Gemm with a float bias, and a MatMul that an Add turns into such a Gemm.
        input_grids: whether a model input may have one scale per channel although the int8 kernel takes one scale.
        quantizes_residuals: whether the shortcut input of a residual Add gets its own Q/DQ pair.
        isolates_softmax: whether a Softmax between two Transposes must be moved to the last axis explicitly.
        float_reasons: operator -> skip reason, for operators that stay in float on purpose.
        refused: type name -> reason why it is refused. Keys: an activation type ("int16"), a weight type ("int4
            weights"), or a 16-bit float type of `--precision` ("bf16").
        min_dynamic_weights: number of weight elements below which dynamic quantization costs more than it saves.
        smooth_below_db: SmoothQuant is applied to a dynamic node if its input would keep less than this SQNR in dB, as
            one scale must cover outliers.
        gathers_floats: True if there is no int8 Gather: an embedding table is dequantized before the Gather. False: the
            gathered rows are dequantized after it.
        block_bits: bits of weights that the target takes in blocks, in mode "weights".
        channel_bits: bits of weights that it takes with one block for all inputs of an output, in that mode.
        block_operator: whether an operator of the runtime (com.microsoft.MatMulNBits) multiplies by weights in blocks.
            Without it, or on request, they are dequantized by a DequantizeLinear-21.
        block_sizes: bits -> default block size, or "channel".
        least_block: smallest block that the runtime multiplies by without turning the weights into floats first.
        ragged_blocks: whether the last block of an output may be shorter than the others.
        block_zero_points: whether blocks may have zero points.
        negative_scales: whether scales of blocks may be negative, which gives their larger side one integer more.
        shares_blocks: True if one DequantizeLinear may serve several products and a Gather. False if each product needs
            constants of its own, and operators around it that keep it from being fused with its neighbours.
        splits_experts: whether a product by a stack of matrices must be one product by each of them.
        stores_weights: whether int8 -> Cast -> Mul is folded when a file is loaded, so that weights of float nodes can
            be stored as int8 at no cost in time.
        reads_constants: operators for which this folding does not happen in a file with quantized activations, so that
            the runtime refuses the file.
        everywhere: whether the file is meant for all runtimes; the proof runs in all that are installed.
        runs_here: whether ONNX Runtime on CPUs, which the proof uses, runs the file as the target does, so that speed
            and the precision of each node can be measured.
        runtime: writes and runs artifacts of another format than .onnx; None for .onnx alone.
        emits: default format of the artifact, a key of `onnxshot.targets.RUNTIMES` or "onnx".
        keeps_half: whether models that compute in float16 or bfloat16 stay so. Elsewhere they are widened to float32.
        half_note: report note for models that are converted to 16-bit floats.
        note: report note on deployment.
    """

    name: TargetName
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
    block_bits: frozenset[int] = frozenset()
    channel_bits: frozenset[int] = frozenset()
    block_operator: bool = False
    block_sizes: Mapping[int, int | str] = field(default_factory=lambda: {4: 128, 8: 128})
    least_block: int = 16
    ragged_blocks: bool = False
    block_zero_points: bool = True
    negative_scales: bool = True
    shares_blocks: bool = True
    splits_experts: bool = False
    stores_weights: bool = False
    reads_constants: frozenset[str] = frozenset()
    everywhere: bool = False
    runs_here: bool = True
    runtime: Runtime | None = None
    emits: FormatName = "onnx"
    keeps_half: bool = False
    half_note: str = ""
    note: str = ""

    def accepts(self, activation: QuantType, weight: QuantType) -> str:
        """Check a pair of types.

        Args:
            activation: type of activations.
            weight: type of weights.

        Returns:
            Empty if the target computes in this pair, else the reason why not.
        """
        if (activation.name, weight.name) in self.types:
            return ""
        for name in (f"{weight.name} weights", activation.name, weight.name):
            if name in self.refused:
                return self.refused[name]
        runs = ", ".join(sorted(f"{a} x {w}" for a, w in self.types))
        return f"{self.name} has no kernel for {activation.name} activations with {weight.name} weights; it runs {runs}"
