"""Depth maps: their files, their meaning, and networks that estimate them."""
