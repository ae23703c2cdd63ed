"""Former name of `sharp_cog.imaging.images`, kept for scripts that were written for version 0.1."""

from sharp_cog.imaging.images import SourceImage, decode

__all__ = ["SourceImage", "decode"]
