"""The preprocessing presets that ship with onnxshot, one YAML file each."""
