"""Running a predictor: weights, precision, kernels, devices."""
