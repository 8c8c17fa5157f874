"""Tensors of other libraries, as far as samples are read from them: each speaks as its library's do."""

from __future__ import annotations

import numpy as np


class TorchTensor:
    """A tensor that records gradients and lies on a device: numpy gets it after detach and cpu alone."""

    def __init__(self, values, *, grad=True, device="cuda", bfloat16=False):
        self._values, self._grad, self._device, self._bfloat16 = np.asarray(values), grad, device, bfloat16
        self.shape = self._values.shape

    def _like(self, **changed):
        said = {"grad": self._grad, "device": self._device, "bfloat16": self._bfloat16, **changed}
        return TorchTensor(self._values, **said)

    def __len__(self):
        return len(self._values)

    def __getitem__(self, at):
        return TorchTensor(self._values[at], grad=self._grad, device=self._device)

    def detach(self):
        return self._like(grad=False)

    def cpu(self):
        return self._like(device="cpu")

    def float(self):
        return self._like(bfloat16=False)

    def numpy(self):
        if self._grad:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead.")
        if self._device != "cpu":
            raise TypeError("can't convert cuda:0 device type tensor to numpy.")
        if self._bfloat16:
            raise TypeError("Got unsupported ScalarType BFloat16")
        return self._values

    def __array__(self, dtype=None, copy=None):
        return self.numpy()


class ArrayTensor:
    """A tensor that numpy reads by `__array__` alone, as tensorflow's and jax's."""

    def __init__(self, values):
        self._values = np.asarray(values)

    def __array__(self, dtype=None, copy=None):
        return self._values


class PackTensor:
    """A tensor that numpy reads by dlpack alone."""

    def __init__(self, values):
        self._values = np.asarray(values)

    def __dlpack__(self, **how):
        return self._values.__dlpack__(**how)

    def __dlpack_device__(self):
        return self._values.__dlpack_device__()


class Loader:
    """A DataLoader: batches of a data set, each as a list of a tensor of samples and one of labels."""

    def __init__(self, data, size):
        self._data, self._size = data, size

    def __len__(self):
        return -(-len(self._data) // self._size)

    def __iter__(self):
        for start in range(0, len(self._data), self._size):
            x = self._data[start : start + self._size]
            yield [TorchTensor(x), TorchTensor(np.arange(len(x)))]


class MapDataset:
    """A data set of torch: samples and labels by number, with no `__iter__`."""

    def __init__(self, data):
        self._data = data
        self.read = []

    def __len__(self):
        return len(self._data)

    def __getitem__(self, index):
        self.read.append(index)
        return self._data[index], index % 10


class HubDataset:
    """A data set of Hugging Face: rows as dicts of lists."""

    def __init__(self, columns):
        self._columns = columns
        self.column_names = list(columns)

    def __len__(self):
        return len(next(iter(self._columns.values())))

    def __getitem__(self, index):
        return {name: np.asarray(column[index]).tolist() for name, column in self._columns.items()}
