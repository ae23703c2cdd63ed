"""Image bytes in, upright sRGB pixels and a camera out."""
