"""What all tests share."""

from hypothesis import settings

# A slow machine is not a fault: how long something takes belongs to the benchmarks.
settings.register_profile("sharp_cog", deadline=None)
settings.load_profile("sharp_cog")
