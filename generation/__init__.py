"""The generative side of ZoomLDM: so far, classifier-free guidance."""
