"""The camera, the Gaussians, and operations on a scene of Gaussians."""
