"""onnxruntime's own static quantization: `python peer.py MODEL CALIB PRESET METHOD OUT`. Samples are read by onnxshot's
readers, the first three quarters, as `onnxshot quantize` calibrates on."""

import sys

from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, quantize_static

from onnxshot.calibration.readers import open_data, split
from onnxshot.graph.load import load_model
from onnxshot.rewriting.model_inputs import input_specs, resolve_preset

METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}


class Reader(CalibrationDataReader):
    def __init__(self, data, indices):
        self._feeds = (data[i].feed for i in indices)

    def get_next(self):
        return next(self._feeds, None)


def main():
    model, calib, preset, method, out = sys.argv[1:]
    data = open_data(calib, input_specs(load_model(model)), resolve_preset(preset))
    reader = Reader(data, split(len(data))[0])
    chosen = METHODS[method]
    quantize_static(model, out, reader, quant_format=QuantFormat.QDQ, per_channel=True, calibrate_method=chosen)


main()
