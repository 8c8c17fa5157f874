"""The values that keys of recipes may have: modes, efforts, precisions, range methods, types."""

from onnxshot.calibration import range_methods
from onnxshot.maths import affine

MODES_OF_LAYERS = ("static", "dynamic", "dynamic16", "weights", "stored", "float")
MODES = ("static", "dynamic", "weights", "auto")
EFFORTS = ("fast", "balanced", "best")
FORMATS = ("qdq", "qoperator")
PRECISIONS = ("int8", "fp16", "bf16", "int8+fp16")
METHODS = range_methods.METHODS
WEIGHT_METHODS = ("minmax", "mse")
ACTIVATION_TYPES = {t.name: t for t in (affine.UINT8, affine.INT8, affine.UINT16, affine.INT16, affine.FLOAT8E4M3FN)}
BITS = (4, 8)
WEIGHT_TYPES = {**ACTIVATION_TYPES, affine.INT4.name: affine.INT4}
