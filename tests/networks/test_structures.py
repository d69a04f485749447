"""Strings, exact costs, built networks and mutations of the structure language."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from toolkit.networks.structures import (
    BY_RATIO,
    BlockSpec,
    Conv,
    Residual,
    Space,
    Unit,
    build,
    count,
    mutate,
    parse,
    repair,
    to_text,
    units,
    walk,
)

# (structure, side, parameters with ten classes), from the released code of Zen-NAS
RELEASED = {
    "A": ("SuperConvK3BNRELU(3,8,1,1)", 32, 322),
    "B": (
        "SuperConvK3BNRELU(3,16,2,1)SuperResK3K3(16,16,1,16,1)SuperResK3K3(16,32,2,32,1)"
        "SuperConvK1BNRELU(32,64,1,1)",
        28,
        22_826,
    ),
    "C": (
        "SuperConvK3BNRELU(3,16,2,1)SuperResK1K3K1(16,32,1,16,1)SuperResK1K3K1(32,64,2,16,2)"
        "SuperConvK1BNRELU(64,128,1,1)",
        28,
        37_370,
    ),
    "D": (
        "SuperConvK3BNRELU(3,16,2,1)SuperResIDWE4K3(16,24,1,24,1)SuperResIDWE4K5(24,40,2,40,1)"
        "SuperConvK1BNRELU(40,128,1,1)",
        28,
        52_186,
    ),
    "E": (
        "SuperConvK3BNRELU(3,8,1,1)SuperResK3K3(8,16,1,8,1)SuperResK3K3(16,32,2,16,1)"
        "SuperResK3K3(32,64,2,32,1)SuperResK3K3(64,64,2,32,1)SuperConvK1BNRELU(64,128,1,1)",
        32,
        90_962,
    ),
    "F": (
        "SuperConvK3BNRELU(3,88,1,1)SuperResK1K7K1(88,120,1,16,1)SuperResK1K7K1(120,192,2,16,3)"
        "SuperResK1K5K1(192,224,1,24,4)SuperResK1K5K1(224,96,2,24,2)SuperResK1K3K1(96,168,2,40,3)"
        "SuperResK1K3K1(168,112,1,48,3)SuperConvK1BNRELU(112,512,1,1)",
        32,
        994_674,
    ),
}
KINDS = (*BY_RATIO, "SuperResK3K3", "SuperResK5K5", "SuperResK1K3K1", "SuperResIDWE2K3")


@st.composite
def structures(draw):
    specs = [BlockSpec("SuperConvK3BNRELU", draw(st.integers(1, 3)), 8, draw(st.integers(1, 2)))]
    for _ in range(draw(st.integers(1, 3))):
        specs.append(
            BlockSpec(
                draw(st.sampled_from(KINDS)),
                specs[-1].out_ch,
                draw(st.integers(1, 12)),
                draw(st.integers(1, 2)),
                draw(st.integers(1, 12)),
                draw(st.integers(1, 3)),
            )
        )
    return tuple(specs)


@pytest.mark.parametrize("name", RELEASED)
def test_parameters_of_the_released_structures_of_zen_nas(name):
    text, side, params = RELEASED[name]
    specs = parse(text)
    assert count(specs, side, num_classes=10).params == params
    assert sum(p.numel() for p in build(specs, 10).parameters()) == params
    assert to_text(specs) == text


def test_layers_and_convolutions_of_the_largest_released_structure():
    cost = count(parse(RELEASED["F"][0]), 32, num_classes=10)
    assert cost.layers == 18
    assert cost.convs == 2 + 16 * 6 + 6


@settings(max_examples=25, deadline=None)
@given(structures(), st.integers(5, 13), st.booleans())
def test_counts_are_those_of_the_built_network(specs, side, residual):
    net = build(specs, 5, residual=residual).eval()
    cost = count(specs, side, num_classes=5, residual=residual)
    assert cost.params == sum(p.numel() for p in net.parameters())
    assert cost.convs == sum(isinstance(m, nn.Conv2d) for m in net.modules())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.randn(1, specs[0].in_ch, side, side))
    assert 2 * cost.macs == counter.get_total_flops()


@settings(max_examples=25, deadline=None)
@given(structures())
@example((BlockSpec("SuperResKXKX", 8, 3, bottleneck=1),))  # 0.333333 · 3 is below 1
def test_a_structure_survives_its_text(specs):
    assert parse(to_text(specs)) == specs
    assert parse(to_text(specs).replace(")", ") ")) == specs


def test_reads_the_released_form_of_genet():
    text = (
        "ConvKX(uuid46ff|3,13,3,2)BN(uuid43b7|13)RELU(uuid28|13)"
        "SuperResKXKX(uuiddb|13,48,3,2,1.0,1)ConvKX(uuid8|48,20,1,1)BN(uuidd6|20)"
        "RELU(uuid8|20)AdaptiveAvgPool(20,1)\n"
    )
    assert to_text(parse(text)) == (
        "SuperConvK3BNRELU(3,13,2,1)SuperResKXKX(13,48,3,2,1,1)SuperConvK1BNRELU(48,20,1,1)"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SuperResKXKY(8,8,3,1,1,1)", "unknown block"),
        ("SuperConvK4BNRELU(8,8,1,1)", "unknown block"),
        ("SuperResK3K5(8,8,1,8,1)", "unknown block"),
        ("SuperResK3K3(8,8,1,8,1)SuperResK3K3(9,8,1,8,1)", "takes 9 channels, but block 0 gives 8"),
        ("SuperResK3K3(8,8,1,8)", "takes 5 numbers"),
        ("SuperResK3K3(8,8,1,8,x)", "whole numbers"),
        ("SuperResK3K3(8,8,1,8,0)", "n must be at least 1"),
        ("SuperResK3K3(8,8,1,0,1)", "inner width"),
        ("SuperResKXKX(8,8,2,1,1,1)", "odd"),
        ("SuperResK1DWK1(8,8,3,1,0.1,1)", "ratio"),
        ("SuperResKXKX(8,8,3,1,1,1", "looks like"),
        ("", "looks like"),
    ],
)
def test_refuses_bad_strings(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_refuses_a_kernel_that_contradicts_the_name_and_a_width_without_meaning():
    with pytest.raises(ValueError, match="kernel size 3"):
        BlockSpec("SuperResK3K3", 8, 8, kernel=5)
    with pytest.raises(ValueError, match="no inner width"):
        BlockSpec("SuperConvK3BNRELU", 8, 8, bottleneck=4)
    with pytest.raises(ValueError, match="num_classes"):
        build(parse(RELEASED["A"][0]), 0)
    with pytest.raises(ValueError, match="res"):
        count(parse(RELEASED["A"][0]), 0)


def test_genets_inner_width_comes_from_the_output_and_its_stride_sits_on_the_kxk():
    (bottleneck,) = units(BlockSpec.from_ratio("SuperResK1KXK1", 48, 384, 2, 0.25, 1))
    assert bottleneck.convs == (Conv(48, 96), Conv(96, 96, 3, 2), Conv(96, 384))
    (depthwise,) = units(BlockSpec.from_ratio("SuperResK1DWK1", 48, 16, 2, 3, 1))
    assert depthwise.convs == (Conv(48, 48), Conv(48, 48, 3, 2, groups=48), Conv(48, 16))
    (full,) = units(BlockSpec.from_ratio("SuperResKXKX", 48, 16, 2, 1, 1))
    assert full == Unit((Conv(48, 16, 3, 2), Conv(16, 16, 3)), Conv(48, 16, 1, 2))


def test_shortcuts_project_where_each_paper_says():
    ours = units(BlockSpec("SuperResKXKX", 8, 8, n=2))
    assert [unit.shortcut for unit in ours] == [True, True]
    zen = units(BlockSpec("SuperResK3K3", 8, 8, n=2))
    assert [unit.shortcut for unit in zen] == [Conv(8, 8, bias=True), True]
    inverted = units(BlockSpec("SuperResIDWE4K3", 8, 8, bottleneck=4))
    assert [unit.shortcut for unit in inverted] == [Conv(8, 4, bias=True), Conv(4, 8, bias=True)]


def test_a_block_whose_last_gamma_is_zero_is_relu():
    net = build([BlockSpec("SuperResK1KXK1", 6, 6, n=2)], 3, zero_last=True).eval()
    x = torch.randn(2, 6, 5, 5)
    torch.testing.assert_close(net.forward_features(x), x.relu())


def test_depthwise_with_one_inner_channel_is_the_bottleneck_with_one():
    nets = [build([BlockSpec(kind, 6, 6, 1, 1)], 3).eval() for kind in BY_RATIO[1:]]
    nets[1].load_state_dict(nets[0].state_dict())
    x = torch.randn(2, 6, 5, 5)
    torch.testing.assert_close(nets[0](x), nets[1](x))


def test_without_residual_links_nothing_is_left_of_them():
    net = build(parse(RELEASED["C"][0]), 10, residual=False)
    assert all(m.shortcut is None for m in net.modules() if isinstance(m, Residual))
    assert all(
        conv.groups > 1 or not conv.bias
        for conv, _ in walk(parse(RELEASED["D"][0]), 28, residual=False)
    )


SPACE = Space(("SuperResK3K3", "SuperResK1K5K1"))
LISTS = Space(("SuperResK3K3",), widths=(4, 6), depths=(1, 5), split=0, fixed=(0, -1))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([SPACE, LISTS]), st.integers(1, 3))
def test_mutants_are_valid_and_stay_in_their_space(seed, space, blocks):
    rng, specs = np.random.default_rng(seed), parse(RELEASED["E"][0])
    for _ in range(4):
        specs = mutate(specs, space, rng, blocks)
        parse(to_text(specs))  # channels fit
    assert (specs[0].in_ch, specs[0].stride) == (3, 1)
    assert np.prod([spec.stride for spec in specs]) == 8
    assert all(spec.n < 6 for spec in specs)
    if space is LISTS:
        assert (specs[0].out_ch, specs[-1].out_ch) == (8, 128)
        changed = [spec for spec in specs[1:-1] if spec not in parse(RELEASED["E"][0])]
        assert all(spec.bottleneck in (4, 6, 8, 16, 32) for spec in changed)
    else:
        assert all(spec.out_ch % 8 == 0 and 8 <= spec.out_ch <= 2048 for spec in specs)


def test_mutations_reach_every_kind_and_depth():
    specs, rng = parse(RELEASED["E"][0]), np.random.default_rng(0)
    mutants = [mutate(specs, SPACE, rng) for _ in range(300)]
    assert {spec.kind for mutant in mutants for spec in mutant[1:-1]} == set(SPACE.kinds)
    assert {spec.n for mutant in mutants for spec in mutant[1:-1]} == {1, 2, 3}
    assert {mutant[0].out_ch for mutant in mutants} == {8, 16}  # 8 · 2.5 rounds to 16


def test_a_long_block_is_split_and_keeps_its_stride_once():
    specs = (BlockSpec("SuperConvK3BNRELU", 3, 8), BlockSpec("SuperResK3K3", 8, 16, 2, 8, 5))
    space = Space(("SuperResK3K3",), factors=(1,), steps=(2,), fixed=(0,))
    mutant = mutate(specs, space, np.random.default_rng(0))
    assert [(spec.in_ch, spec.stride, spec.n) for spec in mutant[1:]] == [(8, 2, 3), (16, 1, 4)]


def test_repair_hands_channels_on():
    specs = (BlockSpec("SuperConvK3BNRELU", 3, 8), BlockSpec("SuperResK3K3", 99, 16))
    assert [spec.in_ch for spec in repair(specs)] == [3, 8]


@pytest.mark.parametrize(
    "changes",
    [
        dict(kinds=()),
        dict(kinds=("SuperResK3K4",)),
        dict(steps=()),
        dict(depths=(0, 3)),
        dict(bounds=(9, 8)),
        dict(split=2),
    ],
)
def test_refuses_a_space_without_sense(changes):
    with pytest.raises(ValueError, match=r"must|unknown|needs|at least"):
        Space(**dict(kinds=("SuperResK3K3",)) | changes)


def test_refuses_to_mutate_nothing():
    specs, rng = parse(RELEASED["A"][0]), np.random.default_rng(0)
    with pytest.raises(ValueError, match="not fixed"):
        mutate(specs, Space(("SuperResK3K3",), fixed=(0,)), rng)
    with pytest.raises(ValueError, match="a draw"):
        mutate(specs, SPACE, rng, blocks=0)
