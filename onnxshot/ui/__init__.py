"""The local web page: drop a model and samples, compress, read the report, download the result.

Start with `server`; `jobs` holds the one job that may run, and `worker` runs it in a process of its own. Names and
archives that come from outside are checked in `request` and `uploads`.
"""
