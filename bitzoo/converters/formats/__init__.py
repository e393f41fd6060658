"""One file per checkpoint format: files to tensors, and back."""
