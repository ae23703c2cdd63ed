"""SHARP's network in plain PyTorch, with the parameter names of Apple's checkpoint."""
