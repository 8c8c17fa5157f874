"""Reports: the values that a run measured (`report`, `values`), the verdict on them, and how they are saved.

`report` is the start; html/ draws the page and trackers/ logs to experiment trackers. Nothing here runs a model.
"""
