"""Measurements of large images, super-resolution and condition inversion, on trained weights."""
