"""What the README's example needs of torch, where torch is not installed."""
