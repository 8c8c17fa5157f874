"""What values flow through a model: readers, preprocessing, observers, ranges. Knows no graph."""
