"""Settings of all tests."""

from hypothesis import settings

# Benchmarks measure time; a slow machine is no failure of a test.
settings.register_profile("sharp_cog", deadline=None)
settings.load_profile("sharp_cog")
