"""The truncated forward pass against diffusers' own, and the names of its places."""

from __future__ import annotations

import pytest
import torch

from zoomfeat.encoders.zoomldm import untrained_tiny
from zoomfeat.errors import ConfigurationError
from zoomfeat.models.denoiser import activations, canonical_taps, tap_dims, without_condition


@pytest.fixture(scope="module")
def unet():
    return untrained_tiny().unet.eval()


@pytest.fixture(scope="module")
def inputs(unet):
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(2, 4, 32, 32, generator=generator)
    return sample, torch.tensor([5, 700]), torch.randn(2, 65, 128, generator=generator)


@torch.no_grad()
def test_taps_equal_what_hooks_see_in_the_stock_forward(unet, inputs):
    seen = {}

    def remember(name):
        return lambda module, args, output: seen.__setitem__(name, output[0] if isinstance(output, tuple) else output)

    places = {
        "mid": unet.mid_block, "up_blocks.0": unet.up_blocks[0], "up_blocks.3": unet.up_blocks[3],
        "up_blocks.1.layers.1": unet.up_blocks[1].attentions[1], "down_blocks.2": unet.down_blocks[2],
        "down_blocks.0.layers.0": unet.down_blocks[0].resnets[0], "conv_in": unet.conv_in,
    }  # fmt: skip
    handles = [module.register_forward_hook(remember(name)) for name, module in places.items()]
    unet(*inputs)
    for handle in handles:
        handle.remove()
    found = activations(unet, *inputs, list(places))
    for name in places:
        assert torch.equal(found[name], seen[name]), name


@torch.no_grad()
def test_the_forward_stops_at_the_last_tap(unet, inputs):
    reached = []
    blocks = [*unet.up_blocks, unet.conv_out]
    handles = [m.register_forward_pre_hook(lambda m, a, i=i: reached.append(i)) for i, m in enumerate(blocks)]
    resnets = [r.register_forward_pre_hook(lambda m, a: reached.append("up")) for r in unet.up_blocks[1].resnets]
    activations(unet, *inputs, ["mid", "up_blocks.0"])
    for handle in handles + resnets:
        handle.remove()
    assert reached == []


@torch.no_grad()
def test_without_condition_equals_a_context_of_zeros(unet, inputs):
    sample, timestep, context = inputs
    taps = ["mid", "up_blocks.0", "up_blocks.3"]
    lean = without_condition(unet)
    expected = activations(unet, sample, timestep, torch.zeros_like(context), taps)
    found = activations(lean, sample, timestep, context, taps)
    for tap in taps:
        assert (found[tap] - expected[tap]).abs().max() <= 1e-5 * expected[tap].abs().max()
        assert not torch.allclose(activations(unet, *inputs, [tap])[tap], expected[tap], rtol=1e-3), (
            "the context counts"
        )
    assert sum(p.numel() for p in lean.parameters()) < sum(p.numel() for p in unet.parameters())
    assert {p.data_ptr() for p in lean.parameters()} <= {p.data_ptr() for p in unet.parameters()}, "weights are shared"


def test_names_of_one_place(unet):
    assert canonical_taps(unet, ["middle_block", "output_blocks.2"]) == ("mid", "up_blocks.0")
    assert canonical_taps(unet, ["output_blocks.11"]) == canonical_taps(unet, ["up_blocks.3"])
    assert canonical_taps(unet, ["output_blocks.3"]) == ("up_blocks.1.layers.0",)


@torch.no_grad()
def test_dims_are_the_channels_found(unet, inputs):
    taps = ["conv_in", "down_blocks.1", "mid", "up_blocks.0.layers.1", "up_blocks.2", "output_blocks.11"]
    found = activations(unet, *inputs, taps)
    assert tuple(found[tap].shape[1] for tap in taps) == tap_dims(unet, taps)
    assert list(found) == taps


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        (["up_block.0"], "Did you mean 'up_blocks.0'"),
        ([], "no tap"),
        (["mid", "middle_block"], "twice"),
        (["xyz"], "Taps are"),
    ],
)
def test_unknown_taps(unet, taps, message):
    with pytest.raises(ConfigurationError, match=message):
        canonical_taps(unet, taps)
