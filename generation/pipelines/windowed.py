"""The baseline for large images: windows that overlap, embeddings between patches, and no guide.

Source: Graikos et al., "Learned representation-guided diffusion models for large-image generation" (CVPR 2024): every
step predicts the whole latent as the mean over sliding windows, each under the embedding interpolated at its place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import ImagePipelineOutput
from torch import Tensor

from generation.batches import seeded_normal
from generation.joint_guidance import noise_levels
from generation.joint_sampling import Settings
from generation.large_image import seam_step, uniform, window_estimate
from generation.pipelines.inputs import Embeddings
from generation.pipelines.large import LargeImagePipeline, check_output, draw_seed
from zoomfeat.errors import ConfigurationError
from zoomfeat.models.summarizer import embedding_grid


class WindowedPipeline(LargeImagePipeline):
    """Draws images of any number of 20x patches without a guide."""

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        ssl_embeddings: Embeddings,
        *,
        num_inference_steps: int = 20,
        guidance_scale: float = 3.0,
        generator: torch.Generator | None = None,
        batch_size: int = 4,
        output_type: str = "pil",
        return_dict: bool = True,
        progress: Callable[[int, int], object] | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draws one image.

        Args:
            ssl_embeddings: raw embeddings of its 20x patches, ``(C, rows, columns)``.
            num_inference_steps: noise levels, a number that divides 1000.
            guidance_scale: as in :class:`ZoomLDMPipeline`.
            generator: decides all noise; null: torch's default.
            batch_size: windows at once on a GPU; a CPU takes them one by one.
            output_type: ``pil``, ``np``, ``pt`` or ``latent``.
            return_dict: false: a tuple instead of diffusers' output class.
            progress: called with the windows done and their number.

        Raises:
            ConfigurationError: embeddings or other arguments that do not fit the model.
        """
        check_output(output_type)
        grid = torch.as_tensor(ssl_embeddings).float()
        width = self.summarizer.config.input_dim
        if grid.ndim != 3 or grid.shape[0] != width or not grid[0].numel():
            raise ConfigurationError(
                f"embeddings of shape {tuple(grid.shape)}; expected ({width}, rows, columns)",
                cure="Give one embedding for each of the finest patches",
            )
        if not grid.isfinite().all():
            raise ConfigurationError("the embeddings hold NaN or infinity", cure="Embed the patches again, in float32")
        settings = Settings(num_inference_steps, seam_start=0, batch_size=self._at_once(batch_size))
        latent = self._drawn(grid, settings, guidance_scale, draw_seed(generator), progress)
        found = self.picture(latent, output_type, batch_size=batch_size)
        return ImagePipelineOutput(images=found) if return_dict else (found,)

    def _drawn(
        self,
        grid: Tensor,
        settings: Settings,
        scale: float,
        seed: int,
        progress: Callable[[int, int], object] | None,
    ) -> Tensor:
        device = self._execution_device
        channels, side, _ = self.latent_shape
        rows, columns = grid.shape[1:]
        cells = embedding_grid(grid.flatten(1).T[:, :, None, None].to(device))[..., 0, 0]
        embeddings = cells.T.reshape(grid.shape)
        shape = (channels, rows * side, columns * side)
        state = seeded_normal(shape, seed, 0).to(device)
        levels = noise_levels(self.scheduler, 1000, 1000 // settings.steps)
        total, done = len(levels) * (2 * rows - 1) * (2 * columns - 1), 0
        with self.progress_bar(total=total) as bar:

            def finished(windows: int) -> None:
                nonlocal done
                done += windows
                bar.update(windows)
                if progress is not None:
                    progress(done, total)

            for number, level in enumerate(levels, 1):
                now = window_estimate(
                    self,
                    state,
                    level,
                    embeddings,
                    scale,
                    window=side,
                    batch_size=settings.batch_size,
                    weight=uniform,  # as published
                    finished=finished,
                )
                state = seam_step(now, level, seeded_normal(shape, seed, number).to(device))
        return state
