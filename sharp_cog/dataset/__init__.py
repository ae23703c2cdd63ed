"""Photographs in, a published dataset of splats out: on one machine, on many, on a cluster."""
