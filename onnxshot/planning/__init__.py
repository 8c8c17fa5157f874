"""What will be done to each tensor and node, and why not to the others."""
