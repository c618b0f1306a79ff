"""Pixel by pixel: structural similarity and peak signal-to-noise ratio, by torchmetrics."""

from __future__ import annotations

from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from benchmarks.metrics.registry import PairMetric, pair_metric


@pair_metric
def ssim() -> PairMetric:
    """Structural similarity (Wang et al. 2004): Gaussian windows of 11 px, deviation 1.5; 1 for equal images.

    In single precision, which rounds by about 1e-4 where images are flat; double takes eighteen times as long.
    """

    def score(made: Tensor, real: Tensor) -> Tensor:
        found = structural_similarity_index_measure(made, real, data_range=1.0, reduction="none")
        assert isinstance(found, Tensor)  # a pair only where the full map is asked for
        return found.reshape(len(made))

    return PairMetric("SSIM", True, score)


@pair_metric
def psnr() -> PairMetric:
    """Peak signal-to-noise ratio in dB of each image; infinite for equal ones. The mean is that of the images' dB."""

    def score(made: Tensor, real: Tensor) -> Tensor:
        return peak_signal_noise_ratio(made, real, data_range=1.0, reduction="none", dim=(1, 2, 3))

    return PairMetric("PSNR (dB)", True, score)
