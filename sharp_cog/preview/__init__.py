"""Pictures and videos of a splat. Import what you need from its module: this package loads nothing by itself."""
