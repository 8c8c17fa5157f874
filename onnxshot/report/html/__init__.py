"""The report as one self-contained HTML page, readable without network and without scripts.

Start with `page`. `charts` draws the charts, `graph_map` the graph, and `sections` orders the page. It
reads a report as plain values and knows no models.
"""
