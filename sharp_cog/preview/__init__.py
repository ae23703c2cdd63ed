"""Images and videos of a splat. The package itself imports nothing: import from its modules."""
