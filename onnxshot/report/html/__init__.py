"""The report as one self-contained HTML page, readable without network and without scripts.

Start with `page`, which puts the sections together. `headline` is its top, `tensor_errors` shows errors and ranges,
`graph_map` the graph, and `sections` the rest; `charts` draws SVG. It reads a report as plain values and knows no
models.
"""
