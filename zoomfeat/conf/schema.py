"""Every key of every command: its type, its default and what it means.

These dataclasses are the only list of keys. Hydra validates against them, ``--help`` and ``--cfg job`` print
their explanations, and the encoders take their options as one of them. Nothing heavy is imported here.

The file is long because it is a list: one place to look for a key, and to see that keys of several commands that mean
the same are called and explained the same.
"""

from __future__ import annotations

from copy import copy
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import partial
from typing import Any


def key(default: Any, meaning: str) -> Any:
    """A field with an explanation; lists, dictionaries and configurations are copied for each instance."""
    if isinstance(default, list | dict) or is_dataclass(default):
        return field(default_factory=partial(copy, default), metadata={"help": meaning})
    return field(default=default, metadata={"help": meaning})


REQUIRED: Any = "???"
"""A key without a default, as OmegaConf spells it."""


@dataclass
class EncoderConfig:
    """An encoder without options of its own."""

    name: str = key(REQUIRED, "name in the registry; `zoomfeat encoders` lists all")


@dataclass
class WeightsConfig(EncoderConfig):
    """An encoder whose weights lie on the hub or on disk."""

    weights: str | None = key(None, "local weights instead of the hub's: a checkpoint file or a folder")


@dataclass
class ZoomLDMConfig(EncoderConfig):
    """What decides ZoomLDM's features besides weights and magnification."""

    weights: str | None = key(
        None, "weights.ckpt of the release (config.yaml beside it) or a converted folder; null: the encoder's own"
    )
    taps: list[str] = key(
        ["up_blocks.0"], "places in the denoiser, concatenated: mid, up_blocks.0, up_blocks.1.layers.2, output_blocks.3"
    )
    pool: str = key("mean", "how a tap's activations are pooled over space: mean or max")
    timestep: int = key(100, "noise level of the patch, 0 to 999")
    timesteps: list[int] | None = key(
        None, "several instead, their features concatenated, [50,100]; the first stage runs once for all"
    )
    precision: str = key(
        "float32", "what the networks compute in: float32, or bfloat16 or float16 where a GPU is faster in it"
    )
    compile: bool = key(
        False, "through PyTorch's compiler: minutes before the first patch; meant for GPUs, on a CPU it gains nothing"
    )
    seed: int = key(0, "seed of the noise")
    draws: int = key(1, "how many noises the features are averaged over")
    conditioning: str = key("null", "null: no condition; ssl: embeddings of the finest patches through the Summarizer")
    ssl_encoder: str | None = key(
        None, "encoder of those embeddings, which must be the one that the model was trained with; null: its domain's"
    )
    distilled_encoder: str | None = key(
        None, "folder of `zoomfeat distill mode=encoder` that makes the latents in place of the first stage; faster"
    )


@dataclass
class ZoomLDMTinyConfig(ZoomLDMConfig):
    """The same for the small model that ships: taps and timestep are those that its features were found best at."""

    taps: list[str] = key(
        ["mid", "up_blocks.0", "up_blocks.1", "up_blocks.2", "up_blocks.3"],
        "places in the denoiser, concatenated: mid, up_blocks.0, up_blocks.1.layers.2, output_blocks.3",
    )
    timestep: int = key(25, "noise level of the patch, 0 to 999")
    ssl_encoder: str | None = key(
        "efficientnet-lite0", "encoder of those embeddings: the one that the model was trained with"
    )


@dataclass
class StudentConfig(EncoderConfig):
    """A network that `zoomfeat distill mode=student` taught the features of a ZoomLDM."""

    weights: str | None = key(None, "its folder: `model` of a checkpoint; there are no others, so it must be given")
    taps: list[str] = key([], "which of the taps that it was taught, in this order; empty: all")


@dataclass
class EngineConfig:
    """Where the slides, or the folds, of a run are worked on."""

    name: str = key(REQUIRED, "local: in this process, one after the other; dask, slurm, pbs, lsf, sge: by workers")


@dataclass
class DaskConfig(EngineConfig):
    """Workers of Dask: of a scheduler that runs, or on this machine."""

    address: str | None = key(None, "a running scheduler, for example tcp://10.0.0.1:8786; null: start one here")
    workers: int = key(2, "worker processes that are started here, each with the model; not with an address")


@dataclass
class JobsConfig(EngineConfig):
    """Workers of Dask as jobs of a cluster's queue, as many as there is work for."""

    jobs: int = key(4, "most jobs at a time; each is one worker, which takes slide after slide")
    queue: str | None = key(None, "queue, or partition, of the jobs; null: the cluster's usual one")
    account: str | None = key(None, "account, or project, that pays; null: the user's usual one")
    walltime: str = key("04:00:00", "time limit of a job, HH:MM:SS; a slide that it cuts off goes to another job")
    cores: int = key(4, "processor cores of a job")
    memory: str = key("16GB", "memory of a job")
    gpus: int = key(0, "GPUs of a job")
    directives: list[str] = key([], "further lines of the job's head, for example ['--constraint=a100']")
    prologue: list[str] = key([], "shell commands before the worker starts, for example ['module load cuda']")
    interface: str | None = key(None, "network interface by which jobs reach this machine, for example ib0")
    job_folder: str | None = key(None, "where the output of jobs goes, seen by all machines; null: out/logs/jobs")


@dataclass
class ExtractConfig:
    """Makes bags of slides: one HDF5 file a slide, with features at every magnification."""

    slides: str = key(
        REQUIRED, "folder of slides (searched below too), one slide, or a manifest CSV: path[,slide_id][,mpp]"
    )
    out: str = key(REQUIRED, "folder for the bags, report.csv, config.yaml and previews; not inside the slide folder")
    encoder: EncoderConfig | None = key(
        None, "patch encoder, for example encoder=zoomldm-brca; its keys follow as encoder.KEY"
    )
    encoders: list[str] = key(
        [], "several instead, from one read of each slide: encoders=[zoomldm-brca,uni]; bags go to out/ENCODER/"
    )
    encoder_options: dict[str, Any] = key(
        {}, "their keys, each as encoder_options.ENCODER.KEY: encoder_options.uni.weights=uni.bin"
    )
    domain: str = key("brca", "kind of images: brca (histology), naip (aerial), or a YAML file: docs/satellite.md")
    magnifications: list[str] | None = key(
        None, "any of 20x 10x 5x ... 0.15625x, or the domain's own; null: its two usual ones, 20x and 5x of brca"
    )
    mpp: float | None = key(
        None, "microns per pixel of slides whose metadata give none; a manifest's mpp column wins over both"
    )
    min_tissue: float = key(
        0.5, "share of a finest-magnification patch that must be tissue (or else the domain's foreground), 0 to 1"
    )
    quality: list[str] = key([], "leave out bad patches, any of pen, blur, dark: docs/tissue.md")
    device: str = key("auto", "where the encoder runs: auto, cpu, cuda, cuda:1")
    batch_size: int = key(
        16, "patches at once on a GPU (a CPU takes them one by one); never changes which patches are kept"
    )
    workers: int = key(2, "threads that read ahead while the encoder runs")
    decode: str = key(
        "exact", "JPEG tiles: exact, dct (decoded at 1/2 or 1/4 size: faster, not the same pixels) or openslide (slow)"
    )
    dtype: str = key("float32", "type of stored features: float32 or float16 (CLAM's head needs float32)")
    preview: bool = key(True, "write a PNG of tissue and kept patches for every slide to out/previews")
    overwrite: bool = key(False, "make bags again that exist already")
    on_mismatch: str = key(
        "refuse", "a bag that another configuration made: refuse (a failed slide), recompute, or keep as it is"
    )
    slide_timeout: float | None = key(
        None, "seconds after which a slide counts as failed, its process ended; null: none (one process for all)"
    )
    engine: EngineConfig = key(EngineConfig("local"), "where slides are worked on: engine=local, dask, slurm, ...")


@dataclass
class InspectConfig:
    """Prints bags as tables."""

    bag: str = key(REQUIRED, "a bag, or a folder of bags; also accepted without `bag=`")


@dataclass
class StatusConfig:
    """Says how far a run is: done, failed, at work, left, and how long that takes."""

    out: str = key(REQUIRED, "the out= folder of an extraction, running or not; also accepted without `out=`")


@dataclass
class VerifyConfig:
    """Checks every bag of a run: complete, consistent, finite, as reported."""

    bags: str = key(REQUIRED, "the out= folder of an extraction, or a bag; also accepted without `bags=`")
    bag_timeout: float = key(300.0, "seconds after which a bag counts as damaged: from some libhdf5 does not return")


@dataclass
class ConvertConfig:
    """Converts bags to and from the layouts of other tools."""

    source: str = key(
        REQUIRED, "a bag, a folder of bags, or a folder in another tool's layout; also accepted without `source=`"
    )
    out: str = key(REQUIRED, "folder to write to")
    to: str = key("zoomfeat", "layout to write: zoomfeat, fused, trident, clam, stamp, torchmil or anndata")
    layout: str | None = key(None, "layout to read: zoomfeat, trident, clam, stamp or torchmil; null: recognised")
    domain: str = key("brca", "whose magnifications other tools' files mean: brca, naip, or a YAML file")
    features: str = key(
        "all", "what goes into one matrix: all (a folder a magnification), finest, 20x, 5x, ... or fused"
    )
    mpp: float | None = key(None, "microns per pixel at level 0, where the source does not state it")
    magnification: str | None = key(None, "magnification of the patches, where the source does not state it")
    encoder_name: str | None = key(None, "name of the encoder, where the source does not state it or holds several")


@dataclass
class ConvertCheckpointConfig:
    """Converts a released checkpoint to diffusers' layout (safetensors)."""

    weights: str = key(REQUIRED, "weights.ckpt of the release")
    config: str | None = key(None, "its config.yaml; null: the one beside the checkpoint")
    out: str = key(REQUIRED, "folder to write to; give it later as encoder.weights")
    ema: bool = key(True, "the averaged denoiser weights, as published results use; false: the raw ones")


@dataclass
class FetchConfig:
    """Brings an encoder's weights into the hub cache, for machines without a network."""

    model: str = key(REQUIRED, "encoder, as `zoomfeat encoders` names it; also accepted without `model=`")


@dataclass
class EncodersConfig:
    """Lists the patch encoders."""


@dataclass
class DemoConfig:
    """Draws three small synthetic slides and runs the main job on them, offline."""

    out: str = key("demo", "folder for the slides, what was planted in them, the bags and the previews")
    encoder: EncoderConfig = key(EncoderConfig("zoomldm-tiny"), "patch encoder; its keys follow as encoder.KEY")


@dataclass
class PrepareConfig:
    """Makes a multi-scale training set for ZoomLDM of slides."""

    slides: str = key(
        REQUIRED, "folder of slides (searched below too), one slide, or a manifest CSV: path[,slide_id][,mpp]"
    )
    out: str = key(REQUIRED, "folder of the set: data, index.json and report.csv; not inside the slide folder")
    domain: str = key("brca", "kind of images: brca (histology), naip (aerial), or a YAML file: docs/satellite.md")
    magnifications: list[str] | None = key(
        None, "which to make, for example [20x,5x]; null: all of the domain, of brca 20x 10x 5x ... 0.15625x"
    )
    ssl_encoder: str | None = key(
        None, "encoder of the finest patches under every patch; null: the domain's, of brca uni"
    )
    ssl_weights: str | None = key(None, "its weights on disk, for encoders that have that option")
    first_stage: str | None = key(
        None, "makes the latents: zoomldm-tiny, a ZoomLDM or first-stage folder, or a checkpoint; null: no latents"
    )
    mpp: float | None = key(
        None, "microns per pixel of slides whose metadata give none; a manifest's mpp column wins over both"
    )
    min_tissue: float = key(0.5, "share of a finest patch that must be tissue (or else foreground), 0 to 1")
    min_tissue_coarsest: float = key(
        0.1, "the same at the coarsest magnification of the domain; it falls by the same factor at each step"
    )
    unpooled: bool = key(True, "also store the embedding grids as they are, not only pooled to at most 8 x 8")
    orientations: int = key(1, "8: store every patch turned and mirrored in all ways too, where slides are few")
    origins: int = key(
        1, "places to lay the grid at: more patches at 1.25x and coarser, without embedding anything twice"
    )
    device: str = key("auto", "where encoder and first stage run: auto, cpu, cuda, cuda:1")
    batch_size: int = key(16, "patches at once on a GPU (a CPU takes them one by one); never changes the set")
    workers: int = key(2, "threads that read ahead, and as many that compress images")


@dataclass
class TrainConfig:
    """What every training run takes."""

    data: str = key(REQUIRED, "training set: a folder that `zoomfeat prepare` wrote, or a released demo data set")
    out: str = key(REQUIRED, "folder for checkpoints, metrics.csv and pictures; the same command goes on from it")
    size: str = key("full", "architecture: full (the released sizes) or tiny; a loaded model brings its own")
    steps: int = key(100_000, "optimiser steps in all; a resumed run may ask for more")
    batch_size: int = key(64, "samples a step, of all processes and accumulated micro-batches together")
    accumulate: int = key(1, "micro-batches whose gradients add up to one step, to save memory")
    learning_rate: float = key(2e-5, "learning rate of AdamW, after the warm-up")
    weight_decay: float = key(0.01, "weight decay of AdamW")
    warmup: int = key(1000, "steps over which the learning rate rises linearly")
    schedule: str = key(
        "constant", "the learning rate after it: constant, or cosine, falling to 0 at steps= (which then is fixed)"
    )
    max_grad_norm: float | None = key(None, "clip the gradient to this norm; null, as published: do not clip")
    mixed_precision: str = key("no", "no, bf16 or fp16")
    seed: int = key(0, "decides fresh weights, the order of items, timesteps, noise and what is held out")
    held_out: float = key(0.05, "share of the slides that is kept for validation, 0 to below 1")
    held_out_slides: list[str] = key([], "the slides to keep for it by name, * allowed; wins over held_out")
    validate_every: int = key(1000, "steps between validations; 0: never")
    validation_items: int = key(32, "held-out items of each magnification in a validation")
    sample_every: int = key(1000, "steps between pictures in out/samples: samples, or reconstructions; 0: never")
    checkpoint_every: int = key(1000, "steps between checkpoints")
    keep: int = key(2, "how many of the newest checkpoints stay")
    log_every: int = key(10, "steps that one row of metrics.csv averages")
    workers: int = key(2, "processes that read data ahead")
    tracker: str = key("none", "where accelerate also reports to: none, tensorboard, wandb, mlflow, ...")
    device: str = key("auto", "auto (what accelerate finds) or cpu")


@dataclass
class TrainLDMConfig(TrainConfig):
    """Trains ZoomLDM: denoiser and Summarizer jointly."""

    first_stage: str | None = key(
        None, "the frozen first stage: a ZoomLDM or first-stage folder, or a CompVis checkpoint such as VQ-f4's"
    )
    init: str | None = key(None, "a ZoomLDM (folder or weights.ckpt) to continue from; it brings its first stage")
    init_unet: str | None = key(None, "a latent-diffusion checkpoint (CompVis layout) that the denoiser starts from")
    magnifications: list[str] = key([], "train on these; empty: on all that the data hold")
    summarizer_layers: int | None = key(None, "depth of the Summarizer; null: that of the size (12, tiny 4)")
    magnification_token: bool = key(True, "false: the Summarizer is not told the magnification (an ablation)")
    drop_condition: float = key(0.1, "probability of the null condition, 0 to 1")
    loss_weight: str = key(
        "uniform", "uniform, as published; velocity: errors divided by the share of signal, so that layout comes sooner"
    )
    ema_decay: float = key(0.9999, "of the denoiser's averaged weights, which checkpoints export")
    gradient_checkpointing: bool = key(False, "recompute the denoiser's activations: less memory, more time")
    sample_steps: int = key(50, "DDIM steps of those samples")
    guidance: float = key(2.0, "classifier-free guidance of those samples; 1 is none")


@dataclass
class TrainFirstStageConfig(TrainConfig):
    """Trains or fine-tunes a VQ first stage."""

    init: str | None = key(
        None, "start from: a ZoomLDM or first-stage folder, or a CompVis checkpoint; null: fresh weights"
    )
    decoder_only: bool = key(
        False, "leave encoder and codes as init= has them: latents, and what was trained on them, stay valid"
    )
    crop: int = key(256, "side of the random crops that are trained on, 64 to 256 px")
    codebook_weight: float = key(1.0, "of the codebook and commitment loss against the reconstruction's")
    perceptual_weight: float = key(0.0, "of the distance between features of EfficientNet-Lite0; 0: not computed")
    perceptual_stages: list[int] = key([0, 1, 2], "whose features those are, of its stages 0 to 4 (strides 2 to 32)")
    adversarial_weight: float = key(0.0, "of the patch discriminator's verdict; 0: none is trained")
    adversarial_start: int = key(10_000, "steps before the discriminator counts")


@dataclass
class TrainCDMConfig(TrainConfig):
    """Trains the conditioning model: Summarizer tokens from a magnification alone."""

    model: str = key(REQUIRED, "the ZoomLDM (folder or weights.ckpt) whose frozen Summarizer makes the tokens")
    size: str = key("full", "of the network: full (the published DiT-B) or tiny; init= brings its own")
    batch_size: int = key(256, "samples a step, of all processes and accumulated micro-batches together")
    learning_rate: float = key(1e-4, "learning rate of AdamW, after the warm-up")
    weight_decay: float = key(0.0, "weight decay of AdamW")
    sample_every: int = key(0, "without effect: tokens have no picture")
    init: str | None = key(None, "a conditioning model (folder, or the release's checkpoint) to continue from")
    magnifications: list[str] = key([], "train on these; empty: on all that the data hold")
    ema_decay: float = key(0.9999, "of the averaged weights, which checkpoints export")


@dataclass
class DistillConfig(TrainConfig):
    """Teaches a small network the latents or the features of a ZoomLDM."""

    encoder: EncoderConfig = key(
        EncoderConfig("zoomldm-tiny"), "the teacher; its keys follow as encoder.KEY and decide the features"
    )
    mode: str = key("encoder", "encoder: the first stage's latents; student: straight to the tapped features")
    size: str = key("full", "of the network: full (for the released models) or tiny; init= brings its own")
    steps: int = key(20_000, "optimiser steps in all")
    learning_rate: float = key(1e-3, "learning rate of AdamW, after the warm-up")
    schedule: str = key("cosine", "the learning rate after it: constant, or cosine, falling to 0 at steps=")
    max_grad_norm: float | None = key(1.0, "clip the gradient to this norm; null: do not clip")
    sample_every: int = key(0, "without effect: neither latents nor features have a picture")
    magnifications: list[str] = key([], "what it is taught at; empty: all that the data hold")
    init: str | None = key(
        None, "of mode=encoder: a distilled encoder to continue from; of mode=student: local weights of the backbone"
    )
    backbone: str | None = key(
        None, "of mode=student: a network of timm by name, never fetched; null: that of the size"
    )
    feature_weight: float = key(
        0.0, "of mode=encoder: weight of the error of the features, through the frozen denoiser, beside the latents'"
    )


@dataclass
class GenerateConfig:
    """Draws patches: at a magnification alone, or variations of a region of a slide."""

    magnification: Any = key(REQUIRED, "20x, 5x and so on; several as [20x,5x]; or all that the model knows")
    out: str = key(REQUIRED, "folder for the PNGs and preview.png; the same command draws only what is missing there")
    model: str = key("zoomldm-tiny", "zoomldm-brca, zoomldm-naip, zoomldm-tiny, or the path of a folder or checkpoint")
    cdm: str | None = key(
        None, "its conditioning model, which images without slide= need: a folder or checkpoint; null: the model's own"
    )
    num_images: int = key(4, "images of each magnification")
    slide: str | None = key(None, "a slide or a reference picture, to draw variations of a region; null: none")
    x: int | None = key(None, "left edge of that region, in level-0 pixels; it is 256 px a side at the magnification")
    y: int | None = key(None, "top edge of it")
    mpp: float | None = key(None, "microns per pixel of a slide whose metadata give none")
    ssl_encoder: str | None = key(
        None, "encoder of the 20x patches under the region; null: the one that a named model was trained with"
    )
    ssl_weights: str | None = key(None, "its weights on disk, for encoders that have that option")
    scheduler: str = key("ddim", "ddim, plms, dpm-solver++, unipc, or ddpm (ancestral: new noise in every step)")
    steps: int = key(50, "denoising steps, 1 to 1000")
    guidance: float = key(2.0, "classifier-free guidance s in u + s (c - u): 1 is none; w = s - 1 in (1 + w) c - w u")
    seed: int = key(0, "decides the images: image i of a seed is the same however many are drawn")
    device: str = key("auto", "where the model runs: auto, cpu, cuda, cuda:1")
    batch_size: int = key(8, "images at once on a GPU (a CPU takes them one by one)")


@dataclass
class GenerateLargeConfig:
    """Draws a large 20x image under one patch of a coarser magnification, to a pyramidal TIFF."""

    guide: str = key("5x", "magnification of the guide: 5x gives 1024 px, 1.25x 4096 px, 0.3125x 16384 px a side")
    out: str = key(
        REQUIRED, "folder for the TIFF and preview.png; a run that was interrupted goes on from the state it left there"
    )
    model: str = key("zoomldm-tiny", "zoomldm-brca, zoomldm-naip, zoomldm-tiny, or the path of a folder or checkpoint")
    cdm: str | None = key(
        None, "its conditioning model, which draws the guide where neither slide= nor embeddings= is given"
    )
    slide: str | None = key(None, "a slide, to draw a variation of a region of it; null: none")
    x: int | None = key(None, "left edge of that region, in level-0 pixels; it is 256 px a side at the guide")
    y: int | None = key(None, "top edge of it")
    mpp: float | None = key(None, "microns per pixel of a slide whose metadata give none")
    ssl_encoder: str | None = key(
        None, "encoder of the 20x patches under the region; null: the one that a named model was trained with"
    )
    ssl_weights: str | None = key(None, "its weights on disk, for encoders that have that option")
    embeddings: str | None = key(
        None, "instead of a region: a .npy file of (channels, rows, columns), one embedding a 20x patch"
    )
    through: list[str] = key([], "magnifications between guide and 20x, each guided by the one above: through=[5x]")
    steps: int = key(20, "noise levels, a number that divides 1000")
    guidance: float = key(3.0, "classifier-free guidance s in u + s (c - u); the publication's w = 2 is 3")
    pulls: int = key(2, "how often every patch is pulled towards the guide at each noise level")
    rate: float = key(0.5, "how far each time, in standard deviations of the state; less for small models")
    clip: bool = key(False, "keep predicted latents within the box of all codes; steadies small models, not published")
    seams: int = key(
        300,
        "timestep, a multiple of 50, that the second pass against seams starts from; more for small models, 0: none",
    )
    seed: int = key(0, "decides the image")
    save_every: int = key(1, "noise levels between two savings of the state")
    device: str = key("auto", "where the model runs: auto, cpu, cuda, cuda:1")
    batch_size: int = key(8, "patches at once on a GPU (a CPU takes them one by one); bounds the memory")


@dataclass
class SuperresConfig:
    """Draws the 20x image of a coarser one: super-resolution by 2, 4 or 8."""

    image: str = key(REQUIRED, "the picture: PNG, JPEG or TIFF, at 10x for scale=2, 5x for scale=4, 2.5x for scale=8")
    out: str = key(REQUIRED, "folder for the result and preview.png, which shows it beside bicubic interpolation")
    scale: int = key(4, "how much finer: 2, 4 or 8")
    condition: str = key(
        "inferred", "inferred: embeddings that explain the picture are looked for; given: embeddings=; uncond: none"
    )
    embeddings: str | None = key(
        None, "for condition=given: a .npy file of (channels, rows, columns), one embedding a 20x patch"
    )
    model: str = key("zoomldm-tiny", "zoomldm-brca, zoomldm-naip, zoomldm-tiny, or the path of a folder or checkpoint")
    format: str = key("png", "png, or tiff: tiled and pyramidal, streamed, for results of many thousand px")
    steps: int = key(20, "noise levels, a number that divides 1000")
    guidance: float = key(3.0, "classifier-free guidance s in u + s (c - u); the publication's w = 2 is 3")
    pulls: int = key(2, "how often every patch is pulled towards the picture at each noise level")
    rate: float = key(0.5, "how far each time, in standard deviations of the state; less for small models")
    clip: bool = key(False, "keep predicted latents within the box of all codes; steadies small models, not published")
    seams: int = key(
        300,
        "timestep, a multiple of 50, that the second pass against seams starts from; more for small models, 0: none",
    )
    inversion_steps: int = key(200, "steps of the search for embeddings, for each 256 px of the picture")
    seed: int = key(0, "decides the result")
    save_every: int = key(1, "noise levels between two savings of the state")
    device: str = key("auto", "where the model runs: auto, cpu, cuda, cuda:1")
    batch_size: int = key(8, "patches at once on a GPU (a CPU takes them one by one); bounds the memory")


@dataclass
class AppliedModelConfig:
    """What the commands that apply saved models to bags share."""

    model: str = key(
        REQUIRED,
        "a saved model, a folder of models, the out= of a cross-validation, or a pattern; several are an ensemble",
    )
    bags: str = key(REQUIRED, "a bag or a folder of bags, zoomfeat's own or of a layout that `convert` reads")
    out: str = key(REQUIRED, "where the results go")
    mpp: float | None = key(None, "microns per pixel at level 0, where neither bag nor slide states it")
    magnification: str | None = key(None, "magnification of the patches, where bags of other tools do not state it")
    encoder_name: str | None = key(None, "name of the encoder, where bags of other tools do not state it")
    device: str = key("auto", "where the model runs: auto, cpu, cuda, cuda:1")


@dataclass
class PredictConfig(AppliedModelConfig):
    """Predicts bags with saved models: one row a slide."""

    out: str = key(REQUIRED, "the table to write: .csv or .parquet")


@dataclass
class ExplainConfig(AppliedModelConfig):
    """Shows where models look: heatmaps, GeoJSON, a table and a page for each slide."""

    out: str = key(REQUIRED, "folder for the pages, heatmaps, GeoJSON files and tables")
    slides: str | None = key(
        None, "folder of slides, one slide, or a manifest CSV: path[,slide_id][,mpp]; null: pages without pictures"
    )
    values: str = key("percentile", "what the colours of the PNG show: percentile or attention; the page has both")
    opacity: float = key(0.5, "of the heatmap over the slide in the PNG, 0 to 1")
    thumbnail: int = key(2048, "longest side of the pictures of the whole slide, in pixels")
    patches: int = key(8, "how many of the most and of the least attended patches the page shows, each magnification")
    bootstrap: int = key(200, "resamples of a slide's patches for the interval of a single model; 0: no interval")


@dataclass
class CrossvalConfig:
    """Cross-validates a MIL classifier, regressor or survival model, with intervals."""

    bags: str = key(REQUIRED, "folder of bags: zoomfeat's, TRIDENT's or CLAM's (.h5, .pt)")
    labels: str = key(
        REQUIRED, "table of labels (CSV or Parquet): slide_id, patient_id, and the column that label= names"
    )
    out: str = key(
        REQUIRED, "folder for predictions, metrics, splits, models and figures; the same command goes on there"
    )
    label: str = key("label", "column to predict; survival has time= and event= instead")
    task: str = key("classification", "classification, regression or survival")
    classes: list[str] = key([], "take only these, in this order (of two, the second is the positive one); empty: all")
    slide_column: str = key("slide_id", "column of slides; slide and ID are found too")
    patient_column: str = key("patient_id", "column of patients; case_id and patient are found too")
    time: str = key("time", "survival: column of the time until the event or the end of observation")
    event: str = key("event", "survival: column that is 1 where the event happened and 0 where it was not seen")
    slide_table: str | None = key(
        None, "table of slides and their patients, where labels= has a row a patient and not a row a slide"
    )
    split: str = key(
        "stratified", "stratified, leave-one-center-out, column (see fold_column), or the path of fixed splits"
    )
    folds: int = key(10, "number of folds of split=stratified, which each seed draws anew")
    fold_column: str = key("fold", "column of split=column: number of the test fold, or train, val and test")
    center: str = key("center", "column of centres; tcga-site: the tissue source site in a TCGA barcode")
    center_names: str | None = key(None, "table of codes and names of centres; codes of one name are one centre")
    seeds: list[int] = key([0], "one whole cross-validation each: folds, first weights and order of training")
    patient: str = key(
        "mean", "patients with several slides: mean or max of their predictions, or merge their bags into one"
    )
    head: str = key("abmil-gated", "how instances become a prediction; an unknown name lists all")
    scales: list[str] = key([], "magnifications to use, finest first; empty: all that the bags hold")
    fusion: str = key("early", "of several magnifications: early (one matrix) or late (a branch each)")
    width: int = key(128, "length of an embedded instance")
    dropout: float = key(0.25, "on embedded instances, 0 to 1")
    epochs: int = key(50, "passes over the training bags")
    learning_rate: float = key(1e-3, "learning rate of AdamW at its highest; a cosine takes it to 0")
    weight_decay: float = key(1e-2, "weight decay of AdamW")
    batch_size: int = key(16, "bags in memory at once")
    accumulate: int = key(1, "batches whose gradients add up to one step")
    max_instances: int | None = key(None, "most instances of a bag that a training step sees; null: all")
    instance_dropout: float = key(0.0, "share of the instances that a training step leaves out")
    balance: str = key("none", "unequal classes: none, weights (in the loss) or sampling (of the bags)")
    validation: float = key(
        0.0, "share of the training patients that early stopping watches; 0: train all epochs on all"
    )
    patience: int = key(10, "epochs without a better validation loss before training stops")
    standardize: bool = key(True, "bring each feature to mean 0 and deviation 1 over the training instances")
    device: str = key("auto", "where the model runs: auto, cpu, cuda, cuda:1")
    engine: EngineConfig = key(EngineConfig("local"), "where folds are trained: engine=local, dask, slurm, ...")


@dataclass
class CompareConfig:
    """Compares cross-validated runs on the same patients, the first one being the baseline."""

    runs: list[str] = key(REQUIRED, "the out= folders of two or more runs; also accepted without `runs=`")
    out: str | None = key(None, "write the differences to this CSV too")


@dataclass
class LeaderboardConfig:
    """Makes a static site of result records: tables, forest plots, tests of every pair."""

    results: str = key(REQUIRED, "folder of records at any depth; also accepted without `results=`")
    out: str = key("site", "folder for index.html and leaderboard.csv")
    tasks: list[str] = key([], "YAML files of tasks beside those of the package")
    records: bool = key(
        False, "copy the records beside the page, so that readers can check them and see who was predicted"
    )


@dataclass
class SubmitCheckConfig:
    """Checks result records: layout, hash, task, predictions, and metrics that follow from them."""

    files: list[str] = key(REQUIRED, "the records; also accepted without `files=`")
    tasks: list[str] = key([], "YAML files of tasks beside those of the package")


@dataclass
class BenchmarkConfig:
    """Runs a benchmark task: extraction or your bags, cross-validation, intervals, paired tests, a record a result."""

    task: str = key(REQUIRED, "name of a task (an unknown one lists all), or the path of a YAML file that defines one")
    out: str = key("results", "folder; the task gets one of its own in it, and the same command goes on there")
    encoders: list[str] = key([], "encoders to compare; empty: those of the task")
    heads: list[str] = key([], "MIL heads, or the methods of superres; empty: those of the task")
    magnifications: list[str] = key([], "20x, 5x, or 20x+5x for both fused; empty: those of the task")
    bags: Any = key(
        None, "bags that you have: a folder with one folder an encoder in it, or {encoder:folder}; null: extract"
    )
    slides: str | None = key(None, "folder of slides or manifest CSV to extract from, for tasks that bring none")
    encoder_options: dict[str, Any] = key(
        {}, "keys of encoders, each as encoder_options.ENCODER.KEY: encoder_options.uni.weights=uni.bin"
    )
    data: str | None = key(None, "what else a task needs: folder of its tables, an archive, or images; it says which")
    model: str | None = key(None, "of generation tasks: zoomldm-brca, zoomldm-tiny, or a path; null: that of the task")
    cdm: str | None = key(None, "its conditioning model: a folder or checkpoint; null: the model's own")
    images: int | None = key(
        None, "of generation tasks: how many at each magnification; null: 100 patches, 4 large images, 8 regions"
    )
    steps: int | None = key(None, "of generation tasks: denoising steps; null: 50 for patches, else 20")
    extractor: str = key("efficientnet-lite0", "of generation tasks: network that their distances are over")
    seeds: list[int] = key([], "one whole cross-validation each; empty: those of the task. Others are another version")
    folds: int | None = key(None, "of stratified folds; null: as the task says. Others are another version of it")
    epochs: int | None = key(None, "of training; null: as the task says. Others are another version of it")
    size: int | None = key(None, "slides of the synthetic cohort; null: as the task says. Others are another version")
    code: list[str] = key([], "Python files to run first, which register heads of your own")
    site: bool = key(True, "also make the leaderboard of the records, in out/TASK/site")
    submitter: str = key("", "who made the records: free text in them")
    device: str = key("auto", "where networks run: auto, cpu, cuda, cuda:1")
    batch_size: int = key(16, "patches at once on a GPU (a CPU takes them one by one)")
    workers: int = key(2, "threads that read ahead while an encoder runs")
    engine: EngineConfig = key(
        EngineConfig("local"), "where slides are extracted and folds are trained: engine=local, dask, slurm, ..."
    )


COMMAND_CONFIGS: dict[str, type] = {
    "extract": ExtractConfig,
    "inspect": InspectConfig,
    "status": StatusConfig,
    "verify": VerifyConfig,
    "convert": ConvertConfig,
    "convert-checkpoint": ConvertCheckpointConfig,
    "encoders": EncodersConfig,
    "fetch": FetchConfig,
    "demo": DemoConfig,
    "prepare": PrepareConfig,
    "train-first-stage": TrainFirstStageConfig,
    "train-ldm": TrainLDMConfig,
    "train-cdm": TrainCDMConfig,
    "distill": DistillConfig,
    "generate": GenerateConfig,
    "generate-large": GenerateLargeConfig,
    "superres": SuperresConfig,
    "crossval": CrossvalConfig,
    "compare": CompareConfig,
    "benchmark": BenchmarkConfig,
    "predict": PredictConfig,
    "explain": ExplainConfig,
    "leaderboard": LeaderboardConfig,
    "submit-check": SubmitCheckConfig,
}
"""The class of each command's keys; the YAML of the same name holds what Hydra composes."""

ENGINE_CONFIGS: dict[str, type] = {"local": EngineConfig, "dask": DaskConfig, "jobs": JobsConfig}
"""The classes of engine options, by the names that the YAML files of the engines use."""

ENGINES = {"local": "local", "dask": "dask", "slurm": "jobs", "pbs": "jobs", "lsf": "jobs", "sge": "jobs"}
"""Engine to the class of its options."""

ENCODER_CONFIGS: dict[str, type] = {
    "plain": EncoderConfig,
    "weights": WeightsConfig,
    "zoomldm": ZoomLDMConfig,
    "tiny": ZoomLDMTinyConfig,
    "student": StudentConfig,
}
"""The classes of encoder options, by the names that the YAML files of the encoders use."""

ENCODERS = {
    "color-stats": "plain",
    "ctranspath": "weights",
    "dinov2-vitl14-reg": "weights",
    "efficientnet-lite0": "plain",
    "h-optimus-0": "weights",
    "phikon": "weights",
    "phikon-v2": "weights",
    "resnet-random": "plain",
    "resnet50": "weights",
    "uni": "weights",
    "uni2-h": "weights",
    "virchow2": "weights",
    "zoomldm-brca": "zoomldm",
    "zoomldm-naip": "zoomldm",
    "zoomldm-student": "student",
    "zoomldm-tiny": "tiny",
}
"""The registered encoders and their kind of options, without importing what runs them."""


def explanations(config: type) -> dict[str, str]:
    """Key to explanation, in order."""
    return {f.name: f.metadata["help"] for f in fields(config)}


def defaults(config: type) -> dict[str, Any]:
    """Key to default; ``REQUIRED`` where there is none."""
    return {f.name: f.default_factory() if f.default_factory is not MISSING else f.default for f in fields(config)}
