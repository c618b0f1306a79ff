"""Sampling: diffusers pipelines over the modules of one ZoomLDM."""
