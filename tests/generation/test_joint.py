"""Joint multi-scale sampling: its step against the reference implementation, and the pipeline as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from generation.joint_guidance import (
    Pull,
    ancestral_step,
    estimate,
    gradient_direction,
    image_error,
    latent_direction,
    noise_levels,
    pull,
    unit_peak,
)
from generation.resize import downscale, mirrored, upscale
from zoomfeat.models.zoomldm import ZoomLDM

STRIDE = 50  # between the golden's timesteps
STATES, DIRECTIONS = 1e-2, 1e-2  # relative L2; largest deviation of directions whose peak is 1


def error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).norm() / expected.norm())


def deviation(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max())


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def folder(shared) -> Path:
    return shared / "zoomldm-golden"


@pytest.fixture(scope="module")
def golden(folder) -> dict[str, Tensor]:
    return load_file(folder / "golden.safetensors")


@pytest.fixture(scope="module")
def averaged(folder) -> ZoomLDM:
    return ZoomLDM.from_checkpoint(folder / "weights.ckpt")


@pytest.mark.shared_data
@pytest.mark.parametrize("factor", [2, 4, 8])
def test_resizing_is_that_of_the_reference_up_to_the_border(golden, factor):
    small = golden[f"resize/down{factor}"]
    assert error(downscale(golden["resize/in"], factor), small) < 1e-6
    assert error(upscale(small, factor), golden[f"resize/up{factor}_of_down{factor}"]) < 1e-6


def test_a_mirror_may_be_wider_than_the_image():
    assert mirrored(torch.arange(3.0).reshape(1, 1, 3), (4, 4, 0, 0))[0, 0].tolist() == [
        2,
        2,
        1,
        0,
        0,
        1,
        2,
        2,
        1,
        0,
        0,
    ]


def conditions(bundle: ZoomLDM, golden: dict[str, Tensor], grid: int) -> tuple[Tensor, Tensor]:
    features = golden[f"joint/ssl_feat_{grid}x{grid}"]
    cells = features.flatten(1).T[:, :, None, None]
    return bundle.summarizer(features[None], {2: 1, 4: 2}[grid]), bundle.summarizer(cells, 0)


def cut(image: Tensor, grid: int) -> Tensor:
    """The parts of an image under the patches, row by row."""
    return torch.cat([part for row in image.chunk(grid, dim=2) for part in row.chunk(grid, dim=3)])


@pytest.mark.shared_data
@pytest.mark.parametrize(("name", "grid", "t"), [("joint", 2, 1000), ("joint_mid", 2, 500), ("joint_last", 4, 50)])
def test_a_joint_step_from_the_states_of_the_reference(golden, averaged, name, grid, t):
    guide_tokens, tokens = conditions(averaged, golden, grid)
    level = noise_levels(averaged.scheduler, t, STRIDE)[0]
    suffix = "_0" if name == "joint" else ""
    guide = estimate(averaged, golden[f"{name}/xg_start"], level, guide_tokens, 3.0)
    assert error(guide.clean, golden[f"{name}/t{t}/x0_guide"]) < 1e-5
    image = averaged.decode(guide.clean).clamp(-1, 1)
    if name != "joint_last":
        assert error(image, golden[f"{name}/t{t}/img_guide"]) < 1e-5
    following = ancestral_step(guide, level, golden[f"{name}/noise_guide{suffix}"])
    assert error(following, golden[f"{name}/t{t}/xg_next"]) < 1e-5

    states, targets = golden[f"{name}/xs_start"], cut(image, grid)
    first = estimate(averaged, states, level, tokens, 3.0)
    assert error(first.clean, golden[f"{name}/t{t}/x0_init"]) < 1e-5
    clean = first.clean
    once = Pull(iterations=1)
    for k in range(1 if name == "joint_last" else 2):
        prefix = f"{name}/t{t}/k{k}_"
        pulled = pull(averaged, states, targets, level, tokens, once)
        if name != "joint_last":
            images = averaged.decode(clean)
            assert error(images[[0, 3]], golden[prefix + "img"]) < 1e-5
            assert deviation(image_error(images, targets)[[0, 3]], golden[prefix + "err"]) < 1e-4
            wanted = latent_direction(averaged, images, targets, once.difference)
            assert deviation(wanted, golden[prefix + "dz"]) < DIRECTIONS
            assert error(pulled.estimate.clean, golden[prefix + "x0"]) < STATES
            clean = golden[prefix + "x0"]
        assert deviation(pulled.direction, golden[prefix + "grad"]) < DIRECTIONS
        assert error(pulled.states, golden[prefix + "x"]) < STATES
        states = golden[prefix + "x"]
    after = ancestral_step(pulled.estimate, level, golden[f"{name}/noise_patches{suffix}"])
    assert error(after, golden[f"{name}/t{t}/x_next"]) < STATES


@pytest.mark.shared_data
def test_two_joint_steps_follow_the_reference(golden, averaged):
    guide_tokens, tokens = conditions(averaged, golden, 2)
    guide, states = golden["joint/xg_start"], golden["joint/xs_start"]
    for number, level in enumerate(noise_levels(averaged.scheduler, 1000, STRIDE)[:2]):
        seen = estimate(averaged, guide, level, guide_tokens, 3.0)
        targets = cut(averaged.decode(seen.clean).clamp(-1, 1), 2)
        last = pull(averaged, states, targets, level, tokens, Pull())
        states = ancestral_step(last.estimate, level, golden[f"joint/noise_patches_{number}"])
        guide = ancestral_step(seen, level, golden[f"joint/noise_guide_{number}"])
        assert error(guide, golden[f"joint/t{level.timestep:.0f}/xg_next"]) < 1e-5
        assert error(states, golden[f"joint/t{level.timestep:.0f}/x_next"]) < STATES


@pytest.mark.shared_data
def test_both_directions_bring_patches_nearer_to_their_targets(golden, averaged):
    """On the golden's weights; a pull that went the other way would show the opposite sign."""
    level = noise_levels(averaged.scheduler, 50, STRIDE)[0]
    _, tokens = conditions(averaged, golden, 4)
    states = golden["joint_last/xs_start"][:4]
    target = downscale(golden["vq/img"], 4).repeat(2, 1, 1, 1)

    def difference(moved: Tensor) -> Tensor:
        seen = averaged.decode(estimate(averaged, moved, level, tokens[:4], 3.0).clean)
        return (downscale(seen, 4) - target).square().mean((1, 2, 3))

    gradient = gradient_direction(averaged, states, target, level, tokens[:4], Pull())
    assert gradient.abs().amax((1, 2, 3)).tolist() == pytest.approx([1.0] * 4)
    assert (difference(states + 0.05 * gradient) < difference(states)).all()
    pulled = pull(averaged, states, target, level, tokens[:4], Pull(iterations=1, rate=0.05))
    assert difference(pulled.states).mean() < difference(states).mean()


def test_a_patch_without_error_has_no_direction():
    assert not unit_peak(torch.zeros(2, 3, 4, 4)).any()
