"""The network in plain PyTorch, under the checkpoint's own names."""
