"""The network's family: what every member has in common; its exact values are guided-diffusion's in test_golden."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from brats_inpainting.config import UNetConfig
from brats_inpainting.diffusion.unet import (
    Attention,
    Downsample,
    ResBlock,
    UNet,
    Upsample,
    timestep_embedding,
)

from ..golden import SMALL, fill, network, rnd


def test_the_time_embedding_has_its_cosines_first():
    embedding = timestep_embedding(torch.tensor([0, 999]), 8)
    assert embedding[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    frequencies = 10000.0 ** -(torch.arange(4) / 4)
    expected = torch.cat([(999 * frequencies).cos(), (999 * frequencies).sin()])
    torch.testing.assert_close(embedding[1], expected, rtol=0, atol=1e-4)  # float32 angles up to 999


def test_several_heads_attend_in_guided_diffusions_order():
    attention, x, heads, features = Attention(64, 2), rnd("attention", (3, 64, 4, 6)), 2, 32
    for name, parameter in attention.named_parameters():
        parameter.data = fill(name, parameter.shape)
    # heads outermost, then q, k and v within each (QKVAttentionLegacy)
    q, k, v = attention.qkv(attention.norm(x).flatten(2)).reshape(3 * heads, 3 * features, 24).split(features, dim=1)
    weights = (q.transpose(1, 2) @ k / features**0.5).softmax(dim=-1)
    expected = x + attention.proj_out((v @ weights.transpose(1, 2)).reshape(3, 64, 24)).reshape(x.shape)
    torch.testing.assert_close(attention(x, None), expected, rtol=0, atol=1e-5)  # float32 sums over 64 values near one


def test_attention_never_holds_the_weights_of_all_pairs_of_positions():
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # no other implementation, whatever it costs
        assert Attention(64, 2)(rnd("attention", (3, 64, 4, 6)), None).shape == (3, 64, 4, 6)


@pytest.mark.parametrize(
    ("config", "height", "width"),
    [
        (UNetConfig(width=32, multipliers=(1,), blocks=1, attention_at=()), 5, 7),
        (UNetConfig(width=32, multipliers=(2, 1, 3), blocks=1, attention_at=(1, 4), heads=2, out_channels=1), 4, 12),
        (UNetConfig(width=32, multipliers=(1, 1, 2, 2), blocks=2, attention_at=(8,), heads=4, in_channels=5), 24, 8),
    ],
    ids=["one level", "narrow middle", "five inputs"],
)
def test_the_output_has_the_inputs_size_and_its_own_channels(config, height, width):
    assert height % config.stride == width % config.stride == 0
    net = UNet(config).eval()
    for parameter in net.parameters():
        torch.nn.init.constant_(parameter, 0.01)
    out = net(torch.randn(2, config.in_channels, height, width), torch.tensor([0, 999]))
    assert out.shape == (2, config.out_channels, height, width)
    assert (out != 0).all()


def test_a_fresh_network_says_zero():
    out = UNet(SMALL)(torch.randn(2, 3, 16, 16), torch.tensor([3, 700]))
    assert torch.equal(out, torch.zeros(2, 2, 16, 16))


def test_a_slice_has_the_same_result_wherever_it_stands_and_whatever_stands_beside_it():
    net = network(SMALL)
    x, others = rnd("batch", (4, 3, 32, 32)), rnd("others", (4, 3, 32, 32))
    others[2] = x[0]
    out, out_among_others = net(x, torch.tensor([5, 100, 500, 999])), net(others, torch.tensor([0, 1, 5, 2]))
    assert torch.equal(out_among_others[2], out[0])  # same batch size, same kernels: the same bytes


def test_one_timestep_serves_all_slices():
    net, x = network(SMALL), rnd("batch", (3, 3, 16, 16))
    single, repeated = net(x, torch.tensor([42])), net(x, torch.tensor([42, 42, 42]))
    torch.testing.assert_close(single, repeated, rtol=0, atol=1e-5)  # a matrix product of another shape sums otherwise


@pytest.mark.parametrize("layer", [Upsample(32, dims=3), Downsample(32, dims=3), ResBlock(32, 64, 4, dims=3)])
def test_what_is_faster_on_a_cpu_equals_what_gradients_flow_through(layer):
    x_NCXYZ, emb_NE = torch.randn(2, 32, 6, 8, 10), torch.randn(2, 4)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    expected = layer(x_NCXYZ, emb_NE)
    assert expected.requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(layer(x_NCXYZ, emb_NE), expected.detach(), rtol=1e-5, atol=1e-4)
