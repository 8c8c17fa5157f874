"""Log a report to an experiment tracker, one file per tracker. Each package is an extra of the same name.

Start with `send`, which finds a tracker by its name. Trackers get plain values and know no models. To add one, write a
module with a function `write(where, record)` and list it in `send`.
"""
