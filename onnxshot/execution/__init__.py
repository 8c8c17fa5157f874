"""What the tensors of a model hold on samples."""
