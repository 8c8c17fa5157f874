"""How a run is executed, and a function that is told how far it is."""

import onnxshot


def show(step: str, done: int, total: int) -> None:
    print(f"{step}: {done} of {total}")


settings = onnxshot.Settings(samples="all", threads=8, memory="4G", device="cuda", progress=show)
limit: int | None = settings.limit
table = onnxshot.sensitivity("model.onnx", "samples/", gains=True, settings=settings, per_channel=False)
worst = [(row.node, row.per_channel_db) for row in table.nodes]
