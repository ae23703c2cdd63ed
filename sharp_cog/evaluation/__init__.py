"""Evaluation of a model: novel views of its splats against truth. The package itself imports nothing."""
