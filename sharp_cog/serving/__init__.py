"""Doors and what they share."""
