from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray


class DataLoader:
    """Batches in order: each position of the items is stacked, as torch does by default."""

    def __init__(self, dataset: Sequence[tuple[object, ...]], batch_size: int = 1) -> None:
        self.dataset, self.batch_size = dataset, batch_size

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self) -> Iterator[list[NDArray[np.generic]]]:
        for start in range(0, len(self.dataset), self.batch_size):
            items = self.dataset[start : start + self.batch_size]
            yield [np.stack([np.asarray(item[i]) for item in items]) for i in range(len(items[0]))]
