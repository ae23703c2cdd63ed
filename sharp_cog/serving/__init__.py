"""Frontends over HTTP, on RunPod and on Modal, and their shared parts."""
