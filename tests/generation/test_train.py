"""Joint training on small real files: what it writes, that it resumes bit for bit, and how it stops."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import openslide
import pandas as pd
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from generation.batches import Draws, Share, choose_items, read_batch, read_images
from generation.data import Sample, TrainingSet
from generation.first_stage import train_first_stage
from generation.initial import initial_model
from generation.monitoring import sample_images
from generation.train import loss_weights, train_ldm
from zoomfeat.conf.compose import compose_config
from zoomfeat.encoders import load_encoder
from zoomfeat.errors import ConfigurationError, ZoomfeatError
from zoomfeat.magnification import BRCA
from zoomfeat.models.architecture import build_first_stage, build_scheduler, build_unet
from zoomfeat.models.summarizer import Summarizer
from zoomfeat.models.zoomldm import ZoomLDM

ROOT = Path(__file__).parents[2]


def train(config, data) -> Path:
    bundle, _ = initial_model(config, data.embedding_dim)
    return train_ldm(config, data, bundle)


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The trained weights, the averaged denoiser and the optimiser's moments."""
    state = load_file(checkpoint / "state" / "model.safetensors")
    state |= {f"ema.{k}": v for k, v in ZoomLDM.load(checkpoint / "model").unet.state_dict().items()}
    optimizer = torch.load(checkpoint / "state" / "optimizer.bin", weights_only=True)
    return state | {f"adam.{i}.{k}": v for i, m in optimizer["state"].items() for k, v in m.items()}


def assert_equal(a: Path, b: Path) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    assert not [key for key in first if not torch.equal(first[key], second[key])]


def test_a_run_leaves_a_model_losses_and_pictures(ldm_config, training_set):
    config = ldm_config("sample_every=6", "sample_steps=2")
    latest = train(config, training_set)
    assert latest.name == "step-00000006"
    before, after = ZoomLDM.load(config.init), ZoomLDM.load(latest / "model")
    assert before.weights_hash() != after.weights_hash()
    assert all(torch.equal(a, b) for a, b in zip(before.vae.parameters(), after.vae.parameters(), strict=True))
    metrics = pd.read_csv(Path(config.out) / "metrics.csv")
    assert metrics["step"].tolist() == [2, 3, 4, 6]
    assert {"loss", "loss_20x", "loss_5x", "loss_1.25x", "learning_rate"} < set(metrics.columns)
    assert metrics["loss"].between(0.5, 2).all()
    held_out = pd.read_csv(Path(config.out) / "validation.csv")
    assert held_out.groupby("step").size().tolist() == [12, 12]  # three magnifications, four bins of timesteps
    assert (held_out["loss"] != held_out["null_loss"]).any()
    picture = Image.open(Path(config.out) / "samples" / "step-00000006.png")
    assert picture.size == (8 * 256, 3 * 256)


def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(ldm_config, training_set):
    whole = train(ldm_config("sample_every=4", "sample_steps=1", out="whole"), training_set)
    train(ldm_config("steps=3", out="parts"), training_set)
    parts = train(ldm_config("validate_every=0", out="parts"), training_set)
    assert_equal(whole, parts)
    metrics = [(folder.parents[1] / "metrics.csv").read_text() for folder in (whole, parts)]
    assert metrics[0] == metrics[1]


def test_killed_at_a_random_step_and_resumed_equals_uninterrupted_bit_for_bit(ldm_words, ldm_config, training_set):
    keys = ("steps=40", "checkpoint_every=4", "log_every=1", "validate_every=0")
    whole = train(ldm_config(*keys, out="whole"), training_set)
    run = subprocess.Popen(
        [sys.executable, "-m", "zoomfeat.cli", "train-ldm", *ldm_words(*keys, out="killed")], cwd=ROOT
    )
    folder = Path(ldm_config(out="killed").out)
    when = int(np.random.default_rng().integers(5, 30))
    while run.poll() is None and _steps(folder) < when:
        time.sleep(0.01)
    run.kill()
    assert run.wait() < 0, "it ended before it was killed"
    assert not [p for p in (folder / "checkpoints").glob("step-*") if not (p / "run.json").is_file()]
    assert_equal(whole, train(ldm_config(*keys, out="killed"), training_set))


def _steps(folder: Path) -> int:
    file = folder / "metrics.csv"
    return len(file.read_text().splitlines()) - 1 if file.is_file() else 0


def test_micro_batches_change_nothing_but_rounding(ldm_config, training_set):
    whole, parts = (train(ldm_config(f"accumulate={n}", out=str(n)), training_set) for n in (1, 4))
    losses = [pd.read_csv(folder.parents[1] / "metrics.csv")["loss"] for folder in (whole, parts)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_two_processes_equal_one_with_the_same_global_batch(ldm_words, ldm_config, training_set):
    one = Path(ldm_config(out="one").out)
    train(ldm_config(out="one"), training_set)
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes=2", "--num_machines=1"]
    launch += [
        "--mixed_precision=no",
        "--dynamo_backend=no",
        "--main_process_port=0",
        "-m",
        "zoomfeat.cli",
        "train-ldm",
    ]
    run = subprocess.run(
        [sys.executable, *launch, *ldm_words(out="two")], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert run.returncode == 0, run.stderr
    for table in ("metrics.csv", "validation.csv"):
        found, expected = (pd.read_csv(one.with_name(out) / table) for out in ("two", "one"))
        pd.testing.assert_frame_equal(found, expected, rtol=1e-4)


class _BrokenSample(Sample):
    @property
    def grid(self):
        return super().grid * np.nan


class _Broken(TrainingSet):
    """One item's embeddings are NaN."""

    bad = -1

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return _BrokenSample(**vars(sample)) if index == self.bad else sample


def test_nan_stops_with_the_item_named_and_the_checkpoint_kept(ldm_config):
    config = ldm_config("checkpoint_every=1", "validate_every=0")
    data = _Broken.open(config.data)
    training, _ = choose_items(data, [], config.held_out, config.seed)
    draws = Draws(tuple(training.values()), config.batch_size, config.seed)
    first = set(draws.at(0).items) | set(draws.at(1).items)
    stop, data.bad = next((step, int(i)) for step in range(2, 6) for i in draws.at(step).items if i not in first)
    with pytest.raises(ZoomfeatError, match=f"loss is not finite in step {stop + 1}, at item {data.bad} ") as caught:
        train(config, data)
    kept = Path(config.out) / "checkpoints" / f"step-{stop:08d}"
    assert str(kept) in str(caught.value)
    assert all(weight.isfinite().all() for weight in weights(kept).values())


def test_a_resume_of_another_run_is_refused(ldm_config, training_set, tmp_path, make_training_set):
    train(ldm_config("steps=1"), training_set)
    with pytest.raises(ConfigurationError, match=r"learning_rate \(was 0.001, is 0.1\), seed \(was 0, is 1\)"):
        train(ldm_config("learning_rate=0.1", "seed=1"), training_set)
    other = TrainingSet.open(make_training_set(tmp_path / "other", {0: 1, 2: 1}))
    with pytest.raises(ConfigurationError, match="index of data"):
        train(ldm_config(), other)


def test_a_disk_that_fills_leaves_the_checkpoint_before(ldm_config, ldm_words, training_set):
    """A limit on the size of files stands for the disk, in a process of its own since it cannot be lifted."""
    before = train(ldm_config("steps=3"), training_set)
    script = """
import resource, signal, sys
from zoomfeat.cli import main

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
sys.exit(main(["train-ldm", *sys.argv[1:]]))
"""
    run = subprocess.run(
        [sys.executable, "-c", script, *ldm_words()], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert run.returncode == 1
    assert "cannot be written" in run.stderr.splitlines()[-1]
    assert "free some space" in run.stderr.splitlines()[-1]
    assert [path.name for path in before.parent.iterdir()] == [before.name]
    train(ldm_config(), training_set)


def test_one_magnification_is_said_and_others_are_refused(ldm_config, tmp_path, make_training_set, capsys):
    data = TrainingSet.open(make_training_set(tmp_path / "flat", {0: 2}, slides=1))
    config = ldm_config("steps=1")
    bundle, _ = initial_model(config, data.embedding_dim)
    train_ldm(config, data, bundle, Console())
    said = capsys.readouterr().out
    assert "one magnification only" in said
    assert "nothing is held out" in said
    with pytest.raises(ConfigurationError, match=r"hold no 5x, 1\.25x; they hold 20x"):
        train(ldm_config("magnifications=20x,5x,1.25x", out="other"), data)


def test_a_magnification_beyond_the_model_is_refused(ldm_config):
    config = ldm_config()
    data = TrainingSet.open(config.data)
    bundle, _ = initial_model(config, data.embedding_dim)
    bundle.summarizer = Summarizer(12, 16, 16, num_layers=1, num_heads=2, mlp_dim=16, num_magnifications=4)
    with pytest.raises(ConfigurationError, match=r"the data hold 1\.25x, the model knows 4 magnifications"):
        train_ldm(config, data, bundle)


def test_images_without_latents_are_encoded(ldm_config, tmp_path, make_training_set):
    data = TrainingSet.open(make_training_set(tmp_path / "images", {0: 1, 2: 1}, slides=2, latents=False))
    assert train(ldm_config("steps=1"), data).name == "step-00000001"


def test_bfloat16_and_recomputed_activations(ldm_config, training_set):
    AcceleratorState._reset_state(True)
    try:
        plain = ldm_config("steps=3", "mixed_precision=bf16", "gradient_checkpointing=true", "tracker=tensorboard")
        train(plain, training_set)
        assert pd.read_csv(Path(plain.out) / "metrics.csv")["loss"].between(0.5, 2).all()
        assert list(Path(plain.out).rglob("events.out.tfevents*"))
    finally:
        AcceleratorState._reset_state(True)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("batch_size=3", "batch_size=3 does not divide"),
        ("steps=0", "steps=0"),
        ("tracker=papyrus", "not one of accelerate"),
        ("mixed_precision=int4", "int4"),
        ("drop_condition=1.5", "drop_condition=1.5"),
        ("device=cuda:1", "expected auto or cpu"),
        ("summarizer_layers=2", "init= brings its own summarizer_layers"),
        ("magnification_token=false", "init= has magnification_token=True"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(ldm_config, training_set, word, message):
    with pytest.raises(ConfigurationError, match=message):
        train(ldm_config("accumulate=2", word), training_set)


def test_draws_are_balanced_over_magnifications_and_follow_from_seed_and_step(training_set):
    training, held_out = choose_items(training_set, [], 0.3, seed=0)
    slides = [{training_set.slides[i] for items in part.values() for i in items} for part in (training, held_out)]
    assert not slides[0] & slides[1]
    draws = Draws(tuple(training.values()), 3000, seed=1)
    drawn = draws.at(7)
    counts = np.bincount(training_set.magnifications[drawn.items])[[0, 2, 4]]
    assert (abs(counts - 1000) < 150).all()  # of 6, 4 and 2 items
    assert abs(drawn.dropped.float().mean() - 0.1) < 0.03
    assert 0 <= drawn.timesteps.min() < 10 < 990 < drawn.timesteps.max() < 1000
    assert np.array_equal(draws.at(7).items, drawn.items)
    assert not np.array_equal(draws.at(8).items, drawn.items)


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_shares_cover_the_global_batch_in_order(processes, accumulate):
    shares = [Share(12, accumulate, process, processes).micro_batches for process in range(processes)]
    covered = []
    for parts in zip(*shares, strict=True):
        together = [i for own, _ in parts for i in range(12)[own]]
        assert all(list(range(12)[everyone]) == together for _, everyone in parts)
        covered += together
    assert covered == list(range(12))


class _Patches:
    """Real patches in memory, all at 20x, with the embeddings of a real encoder."""

    ladder = BRCA

    def __init__(self, images: np.ndarray, embeddings: np.ndarray) -> None:
        self.images, self.embeddings = images, embeddings
        self.latents: np.ndarray | None = None
        self.magnifications = np.zeros(len(images), np.int16)
        self.slides = ["CMU-1-Small-Region"] * len(images)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> SimpleNamespace:
        latent = None if self.latents is None else self.latents[index]
        return SimpleNamespace(image=self.images[index], latent=latent, grid=self.embeddings[index][:, None, None])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.shared_data
def test_sixteen_real_patches_are_learned_by_heart(shared, tmp_path):
    """The loss falls under 5 % of its start, and samples look like the decoded latents of their conditions."""
    with openslide.OpenSlide(shared / "slides" / "CMU-1-Small-Region.svs") as slide:
        places = [(x, y) for y in range(0, 2711, 256) for x in range(0, 1964, 256)]
        tiles = [np.asarray(slide.read_region(place, 0, (256, 256)).convert("RGB")) for place in places]
    images = np.stack(sorted(tiles, key=lambda tile: -tile.std())[:16])
    data = _Patches(images, load_encoder("efficientnet-lite0", "20x", "cpu")(images))
    words = ["data=memory", "device=cpu", "workers=0", "held_out=0", "checkpoint_every=100000", "sample_every=0"]

    torch.manual_seed(0)
    vae = build_first_stage((8, 16, 32, 64, 64), codes=256, norm_num_groups=8, sample_size=256)
    words_fs = [*words, f"out={tmp_path / 'fs'}", "steps=80", "batch_size=2", "learning_rate=2e-3", "warmup=5"]
    train_first_stage(compose_config("train-first-stage", words_fs), data, vae)
    bundle = ZoomLDM(
        vae=vae.eval(),
        unet=build_unet((64, 128), context_dim=64, sample_size=16),
        summarizer=Summarizer(1280, 64, 64, num_layers=2, num_heads=4, mlp_dim=128),
        scheduler=build_scheduler(),
    )
    latents = bundle.encode(read_images(data, range(16)))
    expected = bundle.decode(latents).clamp(-1, 1)
    data.latents = latents.numpy()

    words += [f"out={tmp_path / 'ldm'}", "steps=1500", "batch_size=16", "learning_rate=1.5e-3", "warmup=50"]
    config = compose_config("train-ldm", [*words, "schedule=cosine", "ema_decay=0.99", "log_every=1"])
    trained = ZoomLDM.load(train_ldm(config, data, bundle) / "model")
    losses = pd.read_csv(tmp_path / "ldm" / "metrics.csv")["loss"]
    assert losses[-50:].mean() < 0.05 * losses[:5].mean()

    sampled = sample_images(trained, read_batch(data, range(16)), steps=50, guidance=1.0, seed=1)
    found = _psnr(sampled, expected)
    # Measured: 17 to 44 dB, one under 20; patches of each other 10 to 14 dB.
    assert (found > 20).sum() >= 15
    assert (found > 15).all()
    assert (found > _psnr(sampled, expected.roll(1, 0)) + 2).all()


def _psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Of each pair of images in [-1, 1], dB."""
    return 10 * torch.log10(4 / (a - b).square().mean((1, 2, 3)))


def test_slides_are_held_out_by_name(training_set):
    names = sorted(set(training_set.slides))
    training, held_out = choose_items(training_set, [], [f"{names[0][:-1]}[{names[0][-1]}]", names[1]], seed=0)
    slides = [{training_set.slides[i] for items in part.values() for i in items} for part in (training, held_out)]
    assert slides == [set(names[2:]), set(names[:2])]
    with pytest.raises(ConfigurationError, match="no slide is called 'nothing-"):
        choose_items(training_set, [], ["nothing-*"], seed=0)


def test_a_cosine_schedule_falls_to_zero_and_fixes_the_steps(ldm_config, training_set):
    words = ("schedule=cosine", "log_every=1")
    config = ldm_config(*words)
    train(config, training_set)
    rates = pd.read_csv(Path(config.out) / "metrics.csv")["learning_rate"]
    assert np.allclose(rates / 1e-3, [0.5, *(0.5 + 0.5 * np.cos(np.pi * np.arange(1, 6) / 6))])
    with pytest.raises(ConfigurationError, match=r"steps \(was 6, is 8\)"):
        train(ldm_config(*words, "steps=8"), training_set)
    with pytest.raises(ConfigurationError, match="schedule='linear'"):
        train(ldm_config("schedule=linear", out="other"), training_set)


def test_velocity_weights_make_the_error_of_the_noise_that_of_the_velocity():
    scheduler = build_scheduler()
    timesteps = torch.tensor([10, 300, 480])
    signal = scheduler.alphas_cumprod[timesteps].reshape(-1, 1, 1, 1)
    clean, noise, predicted = torch.randn(3, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    noisy = scheduler.add_noise(clean, noise, timesteps)
    clean_predicted = (noisy - (1 - signal).sqrt() * predicted) / signal.sqrt()
    velocity = signal.sqrt() * predicted - (1 - signal).sqrt() * clean_predicted
    expected = (velocity - scheduler.get_velocity(clean, noise, timesteps)).square().mean((1, 2, 3))
    weights = loss_weights(signal.flatten(), "velocity")
    torch.testing.assert_close(weights * (predicted - noise).square().mean((1, 2, 3)), expected, rtol=1e-4, atol=1e-5)
    assert loss_weights(torch.tensor([1e-4]), "velocity").tolist() == [50]
    assert loss_weights(signal.flatten(), "uniform").tolist() == [1, 1, 1]


def test_weighted_training_reports_the_plain_loss(ldm_config, training_set):
    first = []
    for kind in ("uniform", "velocity"):
        config = ldm_config(f"loss_weight={kind}", "log_every=1", out=kind)
        train(config, training_set)
        first.append(pd.read_csv(Path(config.out) / "metrics.csv")["loss"])
    assert first[0][0] == first[1][0]
    assert (first[0][1:] != first[1][1:]).all()
    with pytest.raises(ConfigurationError, match="loss_weight='snr'"):
        train(ldm_config("loss_weight=snr", out="other"), training_set)
