"""Where else a report can go: a file per tracker of experiments, whose packages are extras of the same name."""
