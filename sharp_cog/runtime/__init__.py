"""Everything between a model and its outputs: weights, precision, kernels, devices."""
