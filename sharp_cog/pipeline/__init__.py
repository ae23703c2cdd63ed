"""The pipeline behind every frontend."""
