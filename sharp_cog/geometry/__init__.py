"""The camera, the Gaussians, and what can be done to a scene of them."""
