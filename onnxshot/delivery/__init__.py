"""What a run leaves behind: the model and its record, artifacts of runtimes, each proven before it is published."""
