"""External depth maps: their files, the meaning of their numbers, and networks that estimate depth."""

from sharp_cog.depth.maps import DepthMap, decode

__all__ = ["DepthMap", "decode"]
