"""Distillation: both kinds learn, resume to the bit, name themselves in bags, and refuse what does not fit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from generation.batches import read_images
from generation.data import TrainingSet
from generation.distill import distill, features_of, read_lesson, teacher_record
from generation.first_stage import standardise_latents
from generation.initial_distilled import check_teacher, initial_network
from zoomfeat.bags import Bag
from zoomfeat.cli import main
from zoomfeat.conf.compose import compose_config
from zoomfeat.conf.schema import DistillConfig
from zoomfeat.configuration import bag_configuration
from zoomfeat.encoders import load_encoder
from zoomfeat.encoders.zoomldm import ZoomLDMEncoder
from zoomfeat.errors import CheckpointMismatchError, ConfigurationError, MagnificationError, ZoomfeatError
from zoomfeat.magnification import BRCA
from zoomfeat.models import onednn
from zoomfeat.models.distilled import FeatureStudent, LatentEncoder, load_distilled
from zoomfeat.slides.synthetic import make_slide

LEVELS = (0, 2)
KINDS = {"encoder": LatentEncoder, "student": FeatureStudent}
SETTINGS = {"taps": ["mid", "up_blocks.0"], "timestep": 25}


@dataclass
class _Sample:
    image: np.ndarray
    grid: np.ndarray
    latent: np.ndarray | None = None


class _Data:
    """Pictures of two colours each, made here: something to tell apart."""

    ladder = BRCA

    def __init__(self, items: int = 24) -> None:
        rng = np.random.default_rng(0)
        self.magnifications = np.array([LEVELS[i % 2] for i in range(items)])
        self.slides = [f"slide-{i // 4}" for i in range(items)]
        self.samples = []
        for level in self.magnifications:
            image = np.empty((256, 256, 3), np.uint8)
            image[:, :128], image[:, 128:] = rng.integers(0, 256, (2, 3))
            self.samples.append(_Sample(image, rng.normal(size=(12, 2**level, 2**level)).astype(np.float32)))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> _Sample:
        return self.samples[index]


class _Killed:
    """Ends the run at the first item that is read once a file is there: in the middle of a step."""

    def __init__(self, data: _Data, once: Path) -> None:
        self._data, self._once = data, once
        self.ladder, self.magnifications, self.slides = data.ladder, data.magnifications, data.slides

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> _Sample:
        if self._once.exists():
            raise KeyboardInterrupt
        return self._data[index]


@pytest.fixture(scope="module")
def teacher(small_model) -> ZoomLDMEncoder:
    return load_encoder("zoomldm-tiny", device="cpu", weights=str(small_model), **SETTINGS)


@pytest.fixture(scope="module")
def data(teacher) -> _Data:
    """With the latents of the teacher, which are brought to mean 0 and deviation 1 as those of real ones are."""
    data, vae = _Data(), teacher.bundle.vae
    with torch.no_grad():
        standardise_latents(vae, vae.encode(read_images(data, range(len(data)))).latents)
    for item in range(len(data)):
        data.samples[item].latent = teacher.bundle.encode(read_images(data, [item]))[0].numpy()
    return data


def config_of(mode: str, out: Path, **changes) -> DistillConfig:
    options = {
        "size": "tiny", "batch_size": 4, "steps": 6, "warmup": 2, "learning_rate": 3e-3, "log_every": 1,
        "checkpoint_every": 2, "validate_every": 0, "validation_items": 4, "held_out": 0.2, "workers": 0,
        "device": "cpu", "backbone": "test_convnext" if mode == "student" else None,
    }  # fmt: skip
    return DistillConfig(data="in memory", out=str(out), encoder="zoomldm-tiny", mode=mode, **(options | changes))


def run(config: DistillConfig, data, teacher: ZoomLDMEncoder) -> Path:
    return distill(config, data, teacher, initial_network(config, teacher))


@pytest.mark.parametrize("mode", KINDS)
def test_training_lowers_the_loss_below_what_the_mean_would_give(mode, tmp_path, data, teacher):
    steps = {"encoder": 80, "student": 30}[mode]
    config = config_of(mode, tmp_path, steps=steps, checkpoint_every=steps, validate_every=steps)
    folder = run(config, data, teacher) / "model"
    losses = pd.read_csv(tmp_path / "metrics.csv")["loss"]
    latents = torch.stack([torch.from_numpy(sample.latent) for sample in data.samples])
    of_the_mean = {"encoder": float(latents.var(0, correction=0).mean()), "student": 1.0}[mode]
    assert losses[-10:].mean() < 0.95 * of_the_mean < 0.95 * losses[:5].mean()

    network = load_distilled(KINDS[mode], folder)
    validation = pd.read_csv(tmp_path / "validation.csv").set_index("magnification")
    assert validation.index.tolist() == ["20x", "5x"]
    held_out = read_lesson(data, range(len(data)), grids=False)
    with torch.no_grad():
        expected = features_of(teacher, held_out)
        if mode == "encoder":
            found = features_of(teacher, held_out, network(held_out.images))
        else:
            found = network.features(held_out.images, held_out.magnifications)
    cosines = torch.nn.functional.cosine_similarity(found, expected)
    assert cosines.min() - 1e-4 < validation["lowest"].min() <= validation["cosine"].max() < cosines.max() + 1e-4

    record = network.record
    assert (record.teacher, record.weights_hash) == ("zoomldm-tiny", teacher.weights_hash)
    assert record.magnifications == ["20x", "5x"]
    assert record.taps == SETTINGS["taps"]
    assert record.settings == teacher.settings
    assert record.latent_shape == [3, 8, 8]
    for name, row in record.fidelity.items():
        assert row["cosine"] == pytest.approx(validation.loc[name, "cosine"], abs=1e-6)
        assert row["lowest"] <= row["cosine"]


@pytest.mark.parametrize("mode", KINDS)
def test_a_run_that_is_killed_and_resumed_equals_one_that_is_not(mode, tmp_path, data, teacher):
    more = {"feature_weight": 0.1} if mode == "encoder" else {}
    whole = run(config_of(mode, tmp_path / "whole", **more), data, teacher)
    config = config_of(mode, tmp_path / "killed", **more)
    checkpoint = tmp_path / "killed" / "checkpoints" / "step-00000004"
    with pytest.raises(KeyboardInterrupt):
        run(config, _Killed(data, checkpoint), teacher)
    assert checkpoint.is_dir()
    resumed = run(config, data, teacher)
    for part in ("state/model.safetensors", "model/diffusion_pytorch_model.safetensors", "model/config.json"):
        assert (resumed / part).read_bytes() == (whole / part).read_bytes()
    assert (tmp_path / "killed/metrics.csv").read_text() == (tmp_path / "whole/metrics.csv").read_text()


def test_a_resume_with_another_teacher_is_refused(tmp_path, data, teacher, small_model):
    run(config_of("student", tmp_path, steps=2), data, teacher)
    other = load_encoder("zoomldm-tiny", device="cpu", weights=str(small_model), taps=["mid"], timestep=25)
    with pytest.raises(ConfigurationError, match=r"the run has another configuration: .*teacher"):
        run(config_of("student", tmp_path, steps=4), data, other)


def test_the_error_of_the_features_counts_and_the_teacher_stays(tmp_path, data, teacher):
    before = teacher.bundle.weights_hash()
    plain, both = (
        pd.read_csv(run(config_of("encoder", tmp_path / str(w), steps=2, feature_weight=w), data, teacher).parents[1]
                    / "metrics.csv")["loss"]
        for w in (0.0, 1.0)
    )  # fmt: skip
    assert (both > plain).all()
    assert teacher.bundle.weights_hash() == before


def test_a_conditioned_teacher_is_asked_with_the_embeddings(tmp_path, data, teacher, monkeypatch):
    class _Context:
        name, weights_hash, dim = "made here", "0" * 64, 12

    conditioned = teacher.at("20x")
    conditioned.context_encoder, conditioned._unet = _Context(), conditioned.bundle.unet
    batch = read_lesson(data, [0, 1], grids=True)
    grids, images = batch.grids, batch.images
    with torch.no_grad():
        rows = [conditioned.at(step).embed(images[i : i + 1], grids[i][None]) for i, step in enumerate(("20x", "5x"))]
    torch.testing.assert_close(features_of(conditioned, batch), torch.cat(rows))
    assert not torch.allclose(features_of(conditioned, batch), features_of(teacher, replace(batch, grids=[])))
    run(config_of("student", tmp_path, steps=1), data, conditioned)


def test_images_that_are_not_finite_end_the_run_with_their_items_named(tmp_path, data, teacher):
    broken = _Data()
    broken.samples[4].latent = np.full((3, 8, 8), np.nan, np.float32)
    for i in set(range(len(broken))) - {4}:
        broken.samples[i].latent = np.zeros((3, 8, 8), np.float32)
    config = config_of("encoder", tmp_path, steps=50, checkpoint_every=50, held_out=0)
    with pytest.raises(ZoomfeatError, match=r"loss is not finite in step \d+, at item 4 \(20x of slide-1\)"):
        run(config, broken, teacher)


def test_local_weights_start_a_backbone_and_others_are_refused(tmp_path, teacher):
    fresh = initial_network(config_of("student", tmp_path), teacher)
    state = {name: tensor + 1 for name, tensor in fresh.network.state_dict().items()}
    save_file(state | {"fc.weight": torch.zeros(2, 2)}, tmp_path / "backbone.safetensors")
    started = initial_network(config_of("student", tmp_path, init=str(tmp_path / "backbone.safetensors")), teacher)
    assert all(torch.equal(tensor, state[name]) for name, tensor in started.network.state_dict().items())
    save_file({"stem.0.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointMismatchError, match="weights of test_convnext are missing or of another shape"):
        initial_network(config_of("student", tmp_path, init=str(tmp_path / "other.safetensors")), teacher)
    with pytest.raises(ConfigurationError, match="backbone='resnet1800'"):
        initial_network(config_of("student", tmp_path, backbone="resnet1800"), teacher)


def test_batch_normalisation_of_one_sample_is_refused(tmp_path, data, teacher):
    with pytest.raises(ConfigurationError, match="micro-batches of one sample"):
        run(config_of("student", tmp_path, accumulate=4, backbone="test_resnet"), data, teacher)


def test_an_encoder_goes_on_from_another(tmp_path, data, teacher):
    folder = run(config_of("encoder", tmp_path / "first", steps=2), data, teacher) / "model"
    again = initial_network(config_of("encoder", tmp_path, init=str(folder)), teacher)
    assert again.weights_hash() == load_distilled(LatentEncoder, folder).weights_hash()


def test_a_teacher_that_does_not_fit_is_refused(training_set, teacher, small_model):
    assert check_teacher(teacher, training_set, "set") is teacher
    with pytest.raises(ConfigurationError, match="color-stats is no ZoomLDM"):
        check_teacher(load_encoder("color-stats"), training_set, "set")
    made = TrainingSet(training_set._contents, configuration={"first_stage": "f" * 64})
    with pytest.raises(
        CheckpointMismatchError, match=r"set: latents of another first stage \(weights hash ffffffffffff"
    ):
        check_teacher(teacher, made, "set")


@pytest.fixture(scope="module")
def tiny_folders(tmp_path_factory) -> dict[str, Path]:
    """Both kinds for the model that ships, untaught: what extraction does with them does not depend on that."""
    shipped = load_encoder("zoomldm-tiny", device="cpu", taps=["mid"])
    record = replace(
        teacher_record(shipped, ["20x", "5x"]), fidelity={"20x": {"cosine": 0.987, "lowest": 0.9, "items": 2}}
    )
    folders = {}
    for mode in KINDS:
        config = config_of(mode, Path("unused"))
        network = initial_network(config, shipped)
        network.write_record(record)
        folders[mode] = tmp_path_factory.mktemp(mode)
        network.save_pretrained(folders[mode])
    return folders


@pytest.mark.parametrize("mode", KINDS)
def test_a_bag_names_the_network_that_made_it(mode, tmp_path, tiny_folders):
    (tmp_path / "slides").mkdir()
    make_slide(tmp_path / "slides" / "slide.tiff", seed=0, size=(768, 768), mpp=0.5)
    folder = tiny_folders[mode]
    words = {
        "encoder": ["encoder=zoomldm-tiny", "encoder.taps=[mid]", f"encoder.distilled_encoder={folder}"],
        "student": ["encoder=zoomldm-student", f"encoder.weights={folder}"],
    }[mode]
    common = [f"slides={tmp_path / 'slides'}", "magnifications=[20x,5x]", "device=cpu", "preview=false"]
    assert main(["extract", *common, f"out={tmp_path / 'bags'}", *words]) == 0
    bag = Bag.open(tmp_path / "bags" / "slide.h5")
    network = load_distilled(KINDS[mode], folder)
    metadata = bag.metadata
    assert metadata.encoder == {"encoder": "zoomldm-tiny-distilled", "student": "zoomldm-student"}[mode]
    assert "0.987 at 20x" in metadata.note
    assert metadata.encoder_settings["taps"] == ["mid"]
    if mode == "encoder":
        assert metadata.encoder_settings["distilled_encoder"] == network.weights_hash()
    else:
        assert metadata.weights_hash == network.weights_hash()
        assert metadata.encoder_settings["teacher_weights_hash"] == network.record.weights_hash
        assert metadata.encoder_settings["timestep"] == 25
    plain = compose_config("extract", [*common, f"out={tmp_path / 'plain'}", "encoder=zoomldm-tiny"])
    shipped = load_encoder("zoomldm-tiny", device="cpu", taps=["mid"])
    assert "distilled_encoder" not in str(bag_configuration(plain, shipped))
    assert bag_configuration(plain, shipped)["encoder"] != metadata.configuration["encoder"]


def test_features_go_through_the_distilled_encoder(tiny_folders):
    images = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), np.uint8)
    encoder = load_encoder("zoomldm-tiny", device="cpu", taps=["mid"], distilled_encoder=str(tiny_folders["encoder"]))
    network = load_distilled(LatentEncoder, tiny_folders["encoder"])
    shipped = load_encoder("zoomldm-tiny", device="cpu", taps=["mid"])
    # Where there is oneDNN the encoder runs by it, which rounds otherwise than the network by itself.
    runs = onednn.accelerated(network.requires_grad_(False)) if onednn.available() else network
    with torch.no_grad():
        expected, plain = shipped.through(runs)(images), shipped.through(network)(images)
    np.testing.assert_array_equal(encoder(images), expected)
    np.testing.assert_allclose(expected, plain, rtol=0, atol=1e-4 * np.abs(plain).max())
    assert not np.allclose(encoder(images), shipped(images), rtol=0, atol=1e-2)
    assert "measured with another" not in encoder.note
    other = load_encoder("zoomldm-tiny", device="cpu", distilled_encoder=str(tiny_folders["encoder"]))
    assert "measured with another denoiser or other taps" in other.note


def test_an_encoder_of_another_first_stage_is_refused(tmp_path, tiny_folders, small_model):
    def stored(name: str, **changes) -> str:
        network = load_distilled(LatentEncoder, tiny_folders["encoder"])
        network.write_record(replace(network.record, **changes))
        network.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    for name, changes, message in (
        ("hash", {"first_stage_hash": "e" * 64}, r"taught by another first stage \(weights hash eeeeeeeeeeee\)"),
        ("shape", {"latent_shape": [3, 64, 64]}, r"made for latents of 3 x 64 x 64, this model's are 4 x 32 x 32"),
        ("scale", {"scaling_factor": 1.5}, r"made for latents scaled by 1.5, this model's are by"),
    ):
        with pytest.raises(CheckpointMismatchError, match=message):
            load_encoder("zoomldm-tiny", device="cpu", distilled_encoder=stored(name, **changes))
    with pytest.raises(CheckpointMismatchError, match="made for latents of 4 x 32 x 32, this model's are 3 x 8 x 8"):
        load_encoder(
            "zoomldm-tiny",
            device="cpu",
            weights=str(small_model),
            taps=["mid"],
            distilled_encoder=str(tiny_folders["encoder"]),
        )
    with pytest.raises(CheckpointMismatchError, match="holds a FeatureStudent; expected a LatentEncoder"):
        load_encoder("zoomldm-tiny", device="cpu", distilled_encoder=str(tiny_folders["student"]))


def test_a_student_knows_its_taps_and_magnifications(tmp_path, data, small_model):
    options = SETTINGS | {"timesteps": [25, 100]}
    teacher = load_encoder("zoomldm-tiny", device="cpu", weights=str(small_model), **options)
    folder = str(run(config_of("student", tmp_path, steps=2), data, teacher) / "model")
    images = np.stack([data[i].image for i in (0, 1)])
    whole = load_encoder("zoomldm-student", device="cpu", weights=folder)
    assert (whole.dim, str(whole.magnification)) == (teacher.dim, "20x")
    part = load_encoder("zoomldm-student", "5x", device="cpu", weights=folder, taps=["up_blocks.0"])
    features = whole.at("5x")(images).reshape(2, 2, 64)  # of each timestep mid, then up_blocks.0, 32 each
    np.testing.assert_array_equal(part(images).reshape(2, 2, 32), features[:, :, 32:])
    assert not np.allclose(whole.at("5x")(images), whole(images))
    with pytest.raises(ConfigurationError, match=r"the student was not taught up_blocks.1. It knows mid, up_blocks.0"):
        load_encoder("zoomldm-student", device="cpu", weights=folder, taps=["up_blocks.1"])
    with pytest.raises(MagnificationError, match=r"the student was not taught 10x. It knows 20x, 5x"):
        whole.at("10x")
    with pytest.raises(ConfigurationError, match="no weights of its own"):
        load_encoder("zoomldm-student", device="cpu")


def test_the_command(tmp_path, training_folder, small_model, capsys):
    out = tmp_path / "run"
    words = [
        f"data={training_folder}", f"out={out}", "encoder=zoomldm-tiny", f"encoder.weights={small_model}",
        "encoder.taps=[mid]", "mode=student", "backbone=test_convnext", "steps=2", "batch_size=4", "size=tiny",
        "workers=0", "device=cpu", "held_out=0.3", "validate_every=2", "magnifications=[20x,5x]",
    ]  # fmt: skip
    assert main(["distill", *words]) == 0
    folder = out / "checkpoints/step-00000002/model"
    text = capsys.readouterr().out.replace("\n", "")
    assert f"encoder=zoomldm-student encoder.weights={folder}" in text
    assert "mean cosine to the teacher's features on held-out patches" in text
    assert load_distilled(FeatureStudent, folder).record.magnifications == ["20x", "5x"]
    for wrong, message in (
        ("mode=both", "mode='both'; expected encoder or student"),
        ("feature_weight=1", "feature_weight= is of mode=encoder"),
        ("size=small", "size='small'; expected full or tiny"),
    ):
        assert main(["distill", *words, wrong]) == 2
        assert message in capsys.readouterr().err
    assert main(["distill", *words, "mode=encoder"]) == 2
    assert "backbone= is of mode=student" in capsys.readouterr().err
