"""The ZoomLDM networks: Summarizer, bundle, released checkpoints, and the truncated denoiser."""
