"""Decoding images to upright sRGB pixels and a camera, within limits."""
