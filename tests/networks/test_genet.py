"""The GENets against timm and the paper's figures; fusion, ranks, and the regression's search."""

import itertools
from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from torch import nn

from toolkit.networks import genet
from toolkit.networks.latency import LatencyTable, layers
from toolkit.networks.structures import build, count, parse, walk

# structure: parameters, then (side, multiply-adds of the whole net, of its depthwise layers)
REFERENCE = {
    "small": (8_173_761, 45, [(192, 547_222_656, 1_337_472), (224, 744_137_504, None)]),
    "normal": (21_142_920, 45, [(192, 2_208_073_216, 3_110_400), (224, 3_004_508_544, None)]),
    "large": (31_078_280, 57, [(224, 3_489_585_024, None), (256, 4_557_041_664, 9_953_280)]),
}


def random_statistics(net, seed=0):
    """Weights, means and variances that hide no mistake."""
    draw = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=draw)
            nn.init.normal_(module.bias, generator=draw)
            module.running_mean.normal_(generator=draw)
            module.running_var.uniform_(0.5, 2, generator=draw)
    return net.eval()


# --- the networks -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REFERENCE)
def test_parameters_multiply_adds_and_convolutions_of_the_reference(name):
    params, convs, rows = REFERENCE[name]
    specs = parse(genet.GENETS[name])
    for side, macs, depthwise in rows:
        cost = count(specs, side, num_classes=1000)
        assert (cost.params, cost.convs, cost.macs) == (params, convs, macs)
        if depthwise:
            found = sum(conv.macs(res) for conv, res in walk(specs, side) if conv.groups > 1)
            assert found == depthwise


@pytest.mark.slow
@pytest.mark.parametrize("name", REFERENCE)
def test_the_same_function_as_in_timm(name):
    theirs = random_statistics(timm.create_model(genet.TIMM_NAMES[name]))
    ours = genet.genet(name).eval()
    genet.copy_weights(theirs, ours)
    x = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert (theirs(x) - ours(x)).abs().max() == 0


def test_weights_of_another_network_are_refused():
    with pytest.raises(ValueError, match="differ"):
        genet.copy_weights(timm.create_model("resnet18"), genet.genet("small"))
    with pytest.raises(ValueError, match="a GENet is one of"):
        genet.genet("huge")
    with pytest.raises(ValueError, match="block type"):
        genet.typed("YY", 4, 4)


# --- fusion -------------------------------------------------------------------------------------


def test_a_fused_network_computes_the_same_without_batch_norm():
    net = random_statistics(build(parse(genet.recipe.MASTER), 10))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    fused = genet.fuse_bn(net)
    x = torch.randn(4, 1, 28, 28)
    with torch.no_grad():
        a, b = net(x), fused(x)
    assert (a - b).abs().max() < 1e-4 * a.abs().max()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    with pytest.raises(ValueError, match="evaluation mode"):
        genet.fuse_bn(net.train())


# --- ranks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_the_spectrum_of_a_kernel_of_exact_rank(rank):
    a, b = torch.linalg.qr(torch.randn(8, rank)).Q, torch.linalg.qr(torch.randn(36, rank)).Q
    s = genet.kernel_spectrum((a @ b.T).view(8, 4, 3, 3))
    torch.testing.assert_close(s, (torch.arange(8) < rank).double(), atol=1e-5, rtol=0)
    for value in genet.rank_stats(s).values():
        assert value == pytest.approx(rank / 8, rel=1e-4)


def test_statistics_of_a_known_spectrum():
    stats = genet.rank_stats(torch.tensor([1.0, 0.6, 0.4, 0.0], dtype=torch.float64))
    assert stats["half"] == 0.5
    assert stats["stable"] == pytest.approx((1 + 0.36 + 0.16) / 4)
    entropy = -sum(p * np.log(p) for p in (0.5, 0.3, 0.2))
    assert stats["entropy"] == pytest.approx(np.exp(entropy) / 4)


def test_an_orthogonal_kernel_has_full_rank_and_zeros_have_none():
    flat = genet.rank_stats(genet.kernel_spectrum(torch.eye(9).view(9, 1, 3, 3)))
    assert list(flat.values()) == pytest.approx([1, 1, 1])
    with pytest.raises(ValueError, match="zeros"):
        genet.kernel_spectrum(torch.zeros(2, 2, 3, 3))
    with pytest.raises(ValueError, match="no kernels"):
        genet.stage_ranks([nn.Linear(2, 2)])


# --- LLR ----------------------------------------------------------------------------------------

SPACE = genet.SearchSpace(
    parse(
        "SuperConvK3BNRELU(1,8,2,1)SuperResKXKX(8,12,3,1,1,1)SuperResK1KXK1(12,24,3,2,0.25,2)"
        "SuperConvK1BNRELU(24,32,1,1)"
    ),
    stages=(1, 2),
    kinds=("XX", "DW"),
    widths=(0.5, 1.0, 1.5),
)


def linear_records(noise=0.0):
    """Changes that are exactly linear, with other coefficients for each stage and type."""
    rng, rows, truth = np.random.default_rng(0), [], {}
    for stage, kind in itertools.product(SPACE.stages, SPACE.kinds):
        truth[stage, kind] = rng.normal(size=3)
        for option in SPACE.options(stage):
            if option.kind == kind:
                x = np.array([1, option.depth, np.log2(option.width)])
                change = x @ truth[stage, kind] + noise * rng.normal()
                rows.append((stage, *option, change))
    return pd.DataFrame(rows, columns=["stage", "kind", "depth", "width", "change"]), truth


@lru_cache
def made_up_table():
    """A latency for every layer of the space, without measuring."""
    rng, seconds = np.random.default_rng(1), {}
    for choice in itertools.product(*(range(len(SPACE.options(s))) for s in SPACE.stages)):
        for layer in layers(SPACE.structure(choice), 28, 4):
            if layer not in seconds:
                seconds[layer] = rng.uniform(1, 2)
    return LatencyTable(seconds)


def test_regression_recovers_a_linear_truth():
    records, truth = linear_records()
    llr = genet.LLR.fit(records, base=0.5, ridge=1e-9)
    for key, beta in truth.items():
        np.testing.assert_allclose(llr.beta[key], beta, atol=1e-6)
        assert llr.r2[key] == pytest.approx(1)


def test_leave_one_out_is_what_leaving_out_gives():
    records, _ = linear_records(noise=1.0)
    llr = genet.LLR.fit(records, base=0.5)
    own = records[(records["stage"] == 2) & (records["kind"] == "DW")]
    errors, constant = [], []
    for row in own.index:
        rest = own.drop(row)
        beta = genet.LLR.fit(rest, base=0.5).beta[2, "DW"]
        x = np.array([1, own.loc[row, "depth"], np.log2(own.loc[row, "width"])])
        errors.append(own.loc[row, "change"] - x @ beta)
        constant.append(own.loc[row, "change"] - rest["change"].mean())
    expected = 1 - np.square(errors).sum() / np.square(constant).sum()
    assert llr.r2[2, "DW"] == pytest.approx(expected, rel=1e-6)


def test_a_prediction_adds_the_changes_of_the_stages():
    llr = genet.LLR.fit(linear_records()[0], base=0.5, ridge=1e-9)
    choices = SPACE.draw(np.random.default_rng(0), 20)
    for choice, predicted in zip(choices, llr.predict(SPACE, choices), strict=True):
        total = 0.5
        for stage, place in zip(SPACE.stages, choice, strict=True):
            option = SPACE.options(stage)[place]
            total += llr.beta[stage, option.kind] @ [1, option.depth, np.log2(option.width)]
        assert predicted == pytest.approx(total)


def test_the_search_finds_what_a_loop_over_all_structures_finds():
    llr, table = genet.LLR.fit(linear_records()[0], base=0.5), made_up_table()
    every = np.array(list(itertools.product(*(range(len(SPACE.options(s))) for s in SPACE.stages))))
    times = np.array([table.predict(SPACE.structure(choice), 28, 4) for choice in every])
    accuracy = llr.predict(SPACE, every)
    for share in (0.05, 0.5, 1.0):
        budget = float(np.quantile(times, share))
        found = llr.search(SPACE, table, budget, 5, res=28, batch=4)
        inside = np.flatnonzero(times <= budget)
        best = inside[np.argsort(-accuracy[inside], kind="stable")[:5]]
        assert [f.accuracy for f in found] == pytest.approx(accuracy[best].tolist())
        for one in found:
            assert table.predict(SPACE.structure(one.choice), 28, 4) == pytest.approx(one.seconds)
            assert one.seconds <= budget


def test_a_budget_that_no_network_meets_is_an_error():
    llr, table = genet.LLR.fit(linear_records()[0], base=0.5), made_up_table()
    with pytest.raises(ValueError, match="no structure meets the budget of 1 ms; the fastest"):
        llr.search(SPACE, table, 1e-3, 5, res=28, batch=4)
    with pytest.raises(ValueError, match="topq"):
        llr.search(SPACE, table, 100.0, 0, res=28, batch=4)


def test_options_keep_a_layer_and_even_widths():
    assert {o.depth for o in SPACE.options(1)} == {0, 1, 2}
    assert {o.depth for o in SPACE.options(2)} == {-1, 0, 1, 2}
    block = SPACE.block(2, genet.Option("DW", 1, 0.5))
    assert (block.out_ch, block.bottleneck, block.n, block.stride) == (12, 36, 3, 2)
    varied = SPACE.vary(1, genet.Option("DW", 2, 1.5))
    assert (varied[1].out_ch, varied[2].in_ch, varied[3]) == (18, 18, SPACE.master[3])


@pytest.mark.parametrize(
    "changes",
    [
        dict(stages=(1, 3)),
        dict(stages=(2, 3)),
        dict(stages=()),
        dict(kinds=("XX", "QQ")),
        dict(depths=(-5,)),
    ],
)
def test_refuses_a_space_without_sense(changes):
    arguments = dict(master=SPACE.master, stages=(1, 2)) | changes
    with pytest.raises(ValueError, match=r"must|one of|needs|at least|unknown|option"):
        genet.SearchSpace(**arguments)


def test_refuses_records_that_do_not_fit():
    records, _ = linear_records()
    with pytest.raises(ValueError, match="lack"):
        genet.LLR.fit(records.drop(columns="change"), 0.5)
    with pytest.raises(ValueError, match="three variants"):
        genet.LLR.fit(records[:2], 0.5)
    llr = genet.LLR.fit(records[records["stage"] == 1], 0.5)
    with pytest.raises(ValueError, match="not fitted"):
        llr.gains(SPACE)


# --- placement ----------------------------------------------------------------------------------


def test_placements_keep_depths_and_strides():
    specs = genet.place(SPACE.master, ("BL", "XX"), (24, 48))
    assert [(s.out_ch, s.n, s.stride) for s in specs[1:-1]] == [(24, 1, 1), (48, 2, 2)]
    assert [s.kind for s in specs[1:-1]] == ["SuperResK1KXK1", "SuperResKXKX"]
    with pytest.raises(ValueError, match="need 2 block types"):
        genet.place(SPACE.master, ("BL",))


class Work(LatencyTable):
    """A machine whose time is its multiply-adds."""

    def profile(self, structures, res, batch, *, rounds=10, device="cpu"):
        return self

    def predict(self, specs, res, batch):
        return batch * count(specs, res).macs / 1e9


@pytest.mark.slow
def test_matched_placements_take_the_targets_time_or_fail():
    target = Work().predict(SPACE.master, 28, 4)
    budget = dict(res=28, batch=4, widths=range(4, 60, 2))
    for kinds in itertools.product(genet.TYPES, repeat=2):
        specs = genet.match_latency(SPACE.master, kinds, target, Work(), **budget)
        assert Work().predict(specs, 28, 4) == pytest.approx(target, rel=0.03)
    with pytest.raises(ValueError, match="the nearest"):
        genet.match_latency(SPACE.master, ("XX", "XX"), 1e9, Work(), res=28, batch=4)


def test_every_recorded_placement_is_the_master_with_other_types():
    assert genet.PLACEMENTS["XX-BL-DW"] == genet.MASTER
    for arm, text in genet.PLACEMENTS.items():
        kinds = [genet.TYPES[kind][0] for kind in arm.split("-")]
        assert [spec.kind for spec in parse(text)[1:-1]] == kinds
        assert [spec.n for spec in parse(text)] == [spec.n for spec in parse(genet.MASTER)]


def test_the_recorded_table_knows_every_structure_of_the_space():
    table = genet.reference_table()
    times = genet.StageTimes.of(genet.SPACE, table, genet.RES, genet.LATENCY_BATCH).grid()
    assert times.shape == (45, 60, 60)
    choice = genet.SPACE.draw(np.random.default_rng(0), 1)[0]
    predicted = table.predict(genet.SPACE.structure(choice), genet.RES, genet.LATENCY_BATCH)
    assert times[tuple(choice)] == pytest.approx(predicted)


def test_random_structures_lie_on_their_side_of_the_budget():
    table, rng = made_up_table(), np.random.default_rng(0)
    times = genet.StageTimes.of(SPACE, table, 28, 4).grid()
    budget = float(np.median(times))
    drawn = genet.draw_structures(SPACE, table, budget, rng, 6, 4, res=28, batch=4)
    found = times[tuple(drawn.T)]
    assert (found[:6] <= budget).all()
    assert (found[6:] > budget).all()
    with pytest.raises(ValueError, match="are needed"):
        genet.draw_structures(SPACE, table, 0.0, rng, 1, 0, res=28, batch=4)
