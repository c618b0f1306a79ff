"""The training of the VQ first stage: from fresh weights, or on from published ones.

The recipe is that of VQGAN (Esser et al., "Taming Transformers", 2021, section 3.1): reconstruction, codebook and
commitment losses, a perceptual loss where one is at hand, and a patch discriminator under a hinge loss. Its adaptive
weight is left out: the discriminator's is a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate.utils import gather_object
from diffusers import VQModel
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from generation.batches import Draw, Levels, TrainingData, read_images
from generation.loop import TrainingLoop
from generation.monitoring import write_grid
from generation.perceptual import STAGES, EfficientNetDistance
from zoomfeat.conf.schema import TrainFirstStageConfig
from zoomfeat.errors import ConfigurationError
from zoomfeat.magnification import PATCH_SIZE

Perceptual = Callable[[Tensor, Tensor], Tensor]
"""Distance of each reconstruction from its image: two ``(B, 3, H, W)`` in [-1, 1] to ``(B,)``."""


def train_first_stage(
    config: TrainFirstStageConfig,
    data: TrainingData,
    vae: VQModel,
    console: Console | None = None,
    perceptual: Perceptual | None = None,
) -> Path:
    """Trains, or goes on where the newest checkpoint in ``config.out`` ended.

    Args:
        config: everything that decides the run but ``perceptual``.
        data: the training set; only its images are read.
        vae: the autoencoder to start from (:func:`generation.initial.initial_first_stage`); trained in place.
        console: where progress and notes go; None: nowhere.
        perceptual: a loss added to the reconstruction's, for example LPIPS; give the same one to resume. None: that
            of ``config.perceptual_weight``.

    Returns:
        The folder of the last checkpoint; its ``model`` is the first stage as diffusers saves it.

    Raises:
        ConfigurationError: keys out of range, or a resume of another run.
        ZoomfeatError: the loss or gradient is not finite (the items are named), or a checkpoint cannot be written.
    """
    if not 64 <= config.crop <= PATCH_SIZE:
        raise ConfigurationError(f"crop={config.crop}; expected 64 to {PATCH_SIZE}", cure="The default is the patch")
    stages = config.perceptual_stages
    if not stages or stages != sorted(set(stages) & set(range(STAGES))):
        raise ConfigurationError(
            f"perceptual_stages={stages}; expected some of 0 to {STAGES - 1}, ascending", cure="The default is [0,1,2]"
        )
    if config.decoder_only and config.init is None:
        raise ConfigurationError(
            "decoder_only=true without init=: the encoder would stay as it was drawn at random",
            cure="Give the first stage whose decoder is to be trained",
        )
    return _FirstStageTraining(config, data, vae, perceptual).fit(console)


@torch.no_grad()
def standardise_latents(vae: VQModel, latents: Tensor) -> None:
    """Gives each channel of a first stage's latents mean 0, and all of them together deviation 1 once scaled.

    The means are taken out of the encoder's last convolution and the codes and put back by the decoder's first one, so
    that pictures come back as before. A denoiser needs this: it starts from noise around zero, and at high noise a
    small error of the predicted noise is a large one of a mean that lies elsewhere.

    Args:
        vae: changed in place, its ``scaling_factor`` included.
        latents: a sample of its latents as ``vae.encode`` gives them, ``(n, C, h, w)``.
    """
    mean = latents.mean((0, 2, 3))
    vae.quant_conv.bias -= mean
    vae.quantize.embedding.weight -= mean
    vae.post_quant_conv.bias += vae.post_quant_conv.weight[:, :, 0, 0] @ mean
    vae.register_to_config(scaling_factor=1 / float((latents - mean[:, None, None]).std()))


class PatchDiscriminator(nn.Sequential):
    """Says of every patch of about 70 px whether it is real: ``(B, 3, H, W)`` to logits ``(B, 1, H/8, W/8)`` or so.

    The PatchGAN of Isola et al. (2017) with three strided layers, under spectral normalisation, so that a sample's
    logits depend on no other sample (batch normalisation would tie them to the number of processes).

    Args:
        width: channels of the first layer.
    """

    def __init__(self, width: int = 64) -> None:
        layers: list[nn.Module] = []
        channels = [3, width, 2 * width, 4 * width, 8 * width]
        for i, (below, above) in enumerate(pairwise(channels)):
            stride = 2 if i < 3 else 1
            layers += [spectral_norm(nn.Conv2d(below, above, 4, stride, 1)), nn.LeakyReLU(0.2)]
        super().__init__(*layers, spectral_norm(nn.Conv2d(channels[-1], 1, 4, 1, 1)))


class _FirstStageTraining(TrainingLoop[Tensor]):
    validation_columns = ("magnification", "loss", "psnr", "codes_used", "items")

    def __init__(
        self, config: TrainFirstStageConfig, data: TrainingData, vae: VQModel, perceptual: Perceptual | None
    ) -> None:
        super().__init__(config, data, {"perceptual loss": perceptual is not None}, read_images)
        self.config, self.vae = config, vae
        if perceptual is None and config.perceptual_weight:
            distance = EfficientNetDistance(config.perceptual_weight, config.perceptual_stages)
            perceptual = distance.to(self.accelerator.device)
        self.perceptual = perceptual
        if config.init is None:
            self._place_codes()
        if config.decoder_only:
            for part in (vae.encoder, vae.quant_conv, vae.quantize):
                part.requires_grad_(False)
        trained = [weight for weight in vae.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(trained, config.learning_rate, weight_decay=config.weight_decay)
        self.model, self.optimizer = self.accelerator.prepare(vae.train(), optimizer)
        self.optimizers = [self.optimizer]
        self.discriminator: nn.Module | None = None
        if config.adversarial_weight:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed)
                critic = PatchDiscriminator()
            critic_optimizer = torch.optim.AdamW(critic.parameters(), config.learning_rate, betas=(0.5, 0.9))
            self.discriminator, self.critic_optimizer = self.accelerator.prepare(critic, critic_optimizer)
            self.optimizers.append(self.critic_optimizer)

    def step(self, step: int, draw: Draw, batches: Iterator[Tensor]) -> Tensor:
        critic = self.discriminator if step >= self.config.adversarial_start else None
        losses = []
        for samples, everyone in self.share.micro_batches:
            images = self._cropped(next(batches), step, samples).to(self.accelerator.device)
            with self.accelerator.accumulate(*(m for m in (self.model, critic) if m is not None)):
                output = self.model(images)
                error = (output.sample - images).abs().mean((1, 2, 3))
                losses.append(self.gathered(error, step, draw.items[everyone]))
                loss = error.mean() + self.config.codebook_weight * output.commit_loss.mean()
                if self.perceptual is not None:
                    with self.accelerator.autocast():
                        loss = loss + self.perceptual(output.sample, images).mean()
                if critic is not None:
                    # Its bare module: the gradient goes through it to the images, and its own weights keep none.
                    judge = self.accelerator.unwrap_model(critic).requires_grad_(False)
                    loss = loss - self.config.adversarial_weight * judge(output.sample).mean()
                    judge.requires_grad_(True)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self.check_gradient(self.model, step, draw)
                self.optimizer.step()
                self.optimizer.zero_grad()
                if critic is not None:
                    self._teach(critic, images, output.sample.detach())
        return torch.cat(losses)

    def _cropped(self, images: Tensor, step: int, samples: slice) -> Tensor:
        """A random crop of each image of a micro-batch: a function of seed, step and place in the global batch."""
        side = self.config.crop
        if side == PATCH_SIZE:
            return images
        crops = []
        for image, sample in zip(images, range(samples.start, samples.stop), strict=True):
            rng = np.random.default_rng([self.config.seed, step, sample])
            top, left = rng.integers(PATCH_SIZE - side + 1, size=2)
            crops.append(image[:, top : top + side, left : left + side])
        return torch.stack(crops)

    def _teach(self, critic: nn.Module, real: Tensor, made: Tensor) -> None:
        """One step of the discriminator, under the hinge loss."""
        on_real, on_made = critic(torch.cat([real, made])).chunk(2)
        loss = (functional.relu(1 - on_real).mean() + functional.relu(1 + on_made).mean()) / 2
        self.accelerator.backward(loss)
        self.critic_optimizer.step()
        self.critic_optimizer.zero_grad()

    @torch.no_grad()
    def validate(self) -> list[dict[str, Any]]:
        """Held-out reconstruction of each magnification; ``codes_used`` is the share of the codebook that occurs."""
        rng = np.random.default_rng(self.config.seed)
        chosen = [
            (level, int(item))
            for level, items in self.held_out.items()
            for item in rng.permutation(items)[: self.config.validation_items]
        ]
        rows = []
        for level, item in chosen[self.accelerator.process_index :: self.accelerator.num_processes]:
            image = read_images(self.data, [item]).to(self.accelerator.device)
            with self.accelerator.autocast():
                latents = self.vae.encode(image).latents
                made = self.vae.decode(latents).sample.float().clamp(-1, 1)
                codes = self.vae.quantize(latents)[2][2]
            mse = float((made - image).square().mean())
            rows.append((level, float((made - image).abs().mean()), 10 * np.log10(4 / mse), set(codes.tolist())))
        table = pd.DataFrame(gather_object(rows), columns=["level", "loss", "psnr", "codes"])
        return [
            {
                "magnification": str(self.data.ladder.steps[level]),
                "loss": float(group["loss"].mean()),
                "psnr": float(group["psnr"].mean()),
                "codes_used": len(set.union(*group["codes"])) / self.vae.config.num_vq_embeddings,
                "items": len(group),
            }
            for level, group in ((level, table[table["level"] == level]) for level in self.held_out)
        ]

    @torch.no_grad()
    def picture(self, levels: Levels, path: Path) -> None:
        """Pairs of an image and its reconstruction, a row a magnification."""
        rows = []
        for items in levels.values():
            images = read_images(self.data, np.resize(items, 4).tolist()).to(self.accelerator.device)
            rows.append((images, torch.cat([self.vae(image[None]).sample for image in images])))
        write_grid(rows, path)

    def export(self, folder: Path) -> None:
        vae = self.vae
        if self.config.init is None:
            vae = deepcopy(vae)  # training goes on from its own weights
            standardise_latents(vae, self._some_latents())
        vae.save_pretrained(folder)

    def _place_codes(self) -> None:
        """Starts the codes at latents of training images.

        diffusers' own start, 1/codes around zero, pulled fresh encoders to a constant in our trials.
        """
        latents = self._some_latents().permute(0, 2, 3, 1).flatten(0, 2).cpu()
        codes = self.vae.quantize.embedding.weight
        chosen = np.random.default_rng(self.config.seed).choice(
            len(latents), len(codes), replace=len(latents) < len(codes)
        )
        codes.data.copy_(latents[torch.from_numpy(chosen)])

    @torch.no_grad()
    def _some_latents(self, items: int = 16) -> Tensor:
        """Latents of some training images of each magnification, ``(n, 3, h, w)``."""
        chosen = [int(item) for places in self.training.values() for item in places[:items]]
        device = next(self.vae.parameters()).device
        return torch.cat([self.vae.encode(read_images(self.data, [item]).to(device)).latents for item in chosen])
