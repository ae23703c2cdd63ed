"""Turns a stream of photographs into a published dataset of splats, on one machine, on several, or on a Ray cluster."""
