"""Former name of `sharp_cog.geometry.camera`, kept for scripts that were written for version 0.1."""

from sharp_cog.geometry.camera import Camera

__all__ = ["Camera"]
