"""Reads, modules and metrics: against attention written out, closed forms and plain loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch.nn import functional as F

from toolkit.scenes import lcm
from toolkit.scenes.lcm import guidance, matcher, metrics, network, reads


def rng(number=0):
    return torch.Generator().manual_seed(number)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=rng(seed))


def disk(x, y, radius, size=64):
    rows, columns = np.mgrid[:size, :size]
    return torch.from_numpy((rows - y) ** 2 + (columns - x) ** 2 <= radius**2)


# --- position -----------------------------------------------------------------------------------


def test_codes_depend_on_the_offset_only_by_the_closed_form():
    dim, size = 64, 16
    code = F.normalize(lcm.sine_position(dim, size, size).double(), dim=0)
    omega = 100.0 ** (-torch.arange(dim // 4).double() / (dim // 4))
    dots = torch.einsum("cij,ckl->ijkl", code, code)
    offset = torch.arange(size)[:, None] - torch.arange(size)
    waves = torch.cos(omega[:, None, None] * offset).sum(0)
    expected = 2 / dim * (waves[:, None, :, None] + waves[None, :, None, :])
    assert torch.allclose(dots, expected, atol=1e-5)
    assert 1 - dots[0, 0, 0, 1] == pytest.approx(0.034, abs=5e-4)


@pytest.mark.parametrize("dim", [0, 2, 6, -4])
def test_a_code_needs_a_multiple_of_four(dim):
    with pytest.raises(ValueError, match="multiple of 4"):
        lcm.sine_position(dim, 4, 4)


def test_an_empty_grid_has_no_code():
    with pytest.raises(ValueError, match="at least one cell"):
        lcm.sine_position(8, 0, 4)


# --- the read -----------------------------------------------------------------------------------


def by_hand(mk, mv, qk, scale):
    """A, v of the specification, one cell after the other."""
    out = torch.zeros(mv.shape[0], mv.shape[1], *qk.shape[2:])
    for b in range(len(mk)):
        keys, values = mk[b].flatten(1), mv[b].flatten(1)
        for y in range(qk.shape[2]):
            for x in range(qk.shape[3]):
                logits = scale * keys.T @ qk[b, :, y, x]
                weights = torch.exp(logits - logits.max())
                out[b, :, y, x] = values @ (weights / weights.sum())
    return out


@pytest.mark.parametrize("chunk", [None, 1, 7, 64])
def test_read_is_attention_over_the_memory(chunk):
    mk, mv, qk = randn(2, 8, 3, 4, 5), randn(2, 6, 3, 4, 5, seed=1), randn(2, 8, 4, 5, seed=2)
    read = lcm.memory_read(mk, mv, qk, chunk)
    assert torch.allclose(read, by_hand(mk, mv, qk, 8**-0.5), atol=1e-5)
    attention = F.scaled_dot_product_attention(
        *(x.flatten(2).transpose(1, 2) for x in (qk, mk, mv))
    )
    assert torch.allclose(read.flatten(2), attention.transpose(1, 2), atol=1e-5)


def test_chunks_survive_large_logits():
    mk, mv, qk = 60 * randn(1, 8, 2, 4, 4), randn(1, 6, 2, 4, 4, seed=1), randn(1, 8, 4, 4, seed=2)
    assert torch.allclose(lcm.memory_read(mk, mv, qk, 5), lcm.memory_read(mk, mv, qk), atol=1e-5)


def test_one_memory_cell_is_returned_everywhere():
    mv = randn(1, 6, 1, 1, 1)
    read = lcm.memory_read(randn(1, 8, 1, 1, 1), mv, randn(1, 8, 3, 4))
    assert torch.allclose(read, mv[:, :, 0].expand(-1, -1, 3, 4))


def test_the_order_of_the_memory_is_irrelevant():
    mk, mv, qk = randn(2, 8, 4, 3, 3), randn(2, 6, 4, 3, 3, seed=1), randn(2, 8, 3, 3, seed=2)
    shuffled = [x[:, :, [2, 0, 3, 1]] for x in (mk, mv)]
    assert torch.allclose(lcm.memory_read(*shuffled, qk), lcm.memory_read(mk, mv, qk), atol=1e-6)


def test_unusable_memories_are_refused():
    mk, mv, qk = randn(1, 8, 2, 4, 4), randn(1, 6, 2, 4, 4), randn(1, 8, 4, 4)
    with pytest.raises(ValueError, match="memory is empty"):
        lcm.memory_read(mk[:, :, :0], mv[:, :, :0], qk)
    with pytest.raises(ValueError, match="do not fit"):
        lcm.memory_read(mk, mv[:, :, :1], qk)
    with pytest.raises(ValueError, match="do not fit"):
        lcm.memory_read(mk, mv, randn(1, 9, 4, 4))
    with pytest.raises(ValueError, match="chunk"):
        lcm.memory_read(mk, mv, qk, 0)


# --- the position-guided read -------------------------------------------------------------------


def unit_code(size=6, dim=64):
    return F.normalize(lcm.sine_position(dim, size, size), dim=0)


def test_guided_read_adds_alpha_times_the_code_to_the_logit():
    kq, km, vm, pos = (
        randn(2, 8, 6, 6),
        randn(2, 8, 6, 6, seed=1),
        randn(2, 3, 6, 6, seed=2),
        unit_code(),
    )
    read = lcm.position_guided_read(kq, km, pos, vm, 7.0)
    logits = 8**-0.5 * km.flatten(2).transpose(1, 2) @ kq.flatten(2)
    logits = logits + 7.0 * pos.flatten(1).T @ pos.flatten(1)
    expected = vm.flatten(2) @ logits.softmax(dim=1)
    assert torch.allclose(read.flatten(2), expected, atol=1e-5)


def test_without_position_it_is_the_plain_read():
    kq, km, vm = randn(2, 8, 6, 6), randn(2, 8, 6, 6, seed=1), randn(2, 3, 6, 6, seed=2)
    plain = lcm.memory_read(km[:, :, None], vm[:, :, None], kq)
    assert torch.allclose(lcm.position_guided_read(kq, km, unit_code(), vm, 0.0), plain, atol=1e-6)


def test_much_position_stays_in_place():
    kq, km, vm = randn(2, 8, 6, 6), randn(2, 8, 6, 6, seed=1), randn(2, 3, 6, 6, seed=2)
    assert torch.allclose(lcm.position_guided_read(kq, km, unit_code(), vm, 1e5), vm, atol=1e-3)


def test_weights_sum_to_one():
    kq, km = randn(1, 8, 6, 6), randn(1, 8, 6, 6, seed=1)
    ones = torch.ones(1, 1, 6, 6)
    assert torch.allclose(lcm.position_guided_read(kq, km, unit_code(), ones, 11.0), ones)


def test_alpha_may_differ_within_a_batch():
    kq, km, vm, pos = (
        randn(3, 8, 6, 6),
        randn(3, 8, 6, 6, seed=1),
        randn(3, 3, 6, 6, seed=2),
        unit_code(),
    )
    alphas = torch.tensor([0.0, 5.0, 50.0])
    together = lcm.position_guided_read(kq, km, pos, vm, alphas)
    for i, alpha in enumerate(alphas.tolist()):
        alone = lcm.position_guided_read(kq[i : i + 1], km[i : i + 1], pos, vm[i : i + 1], alpha)
        assert torch.allclose(together[i : i + 1], alone, atol=1e-6)


def test_moving_both_frames_moves_the_result():
    kq, km, vm, pos = (
        randn(1, 8, 6, 6),
        randn(1, 8, 6, 6, seed=1),
        randn(1, 3, 6, 6, seed=2),
        unit_code(),
    )
    moved = [x.roll((1, 2), (2, 3)) for x in (kq, km, vm)]
    # Far from the border only: a local window makes sure that nothing is read across it.
    a = lcm.position_guided_read(kq, km, pos, vm, 3000.0)
    b = lcm.position_guided_read(moved[0], moved[1], pos, moved[2], 3000.0)
    assert torch.allclose(a[..., 1:4, 1:3], b[..., 2:5, 3:5], atol=1e-4)


def test_unusable_positions_are_refused():
    k, vm = randn(1, 8, 6, 6), randn(1, 3, 6, 6)
    with pytest.raises(ValueError, match="at least 0"):
        lcm.position_guided_read(k, k, unit_code(), vm, -1.0)
    with pytest.raises(ValueError, match="share their grid"):
        lcm.position_guided_read(k, k, unit_code(5), vm, 1.0)
    with pytest.raises(ValueError, match="share their grid"):
        lcm.position_guided_read(k, k[:, :, :5], unit_code(), vm, 1.0)


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 7))
def test_a_window_is_a_square_of_cells(height, width, radius):
    near = reads.window(height, width, radius).reshape(height, width, height, width)
    for y in range(height):
        for x in range(width):
            square = torch.zeros(height, width, dtype=torch.bool)
            square[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1] = True
            assert torch.equal(near[y, x], square)
    with pytest.raises(ValueError, match="radius"):
        reads.window(2, 2, -1)


# --- the modules --------------------------------------------------------------------------------


@pytest.mark.parametrize("fuse", guidance.FUSIONS)
def test_new_position_guidance_changes_nothing(fuse):
    pgm = lcm.PositionGuidance(16, 8, 6, fuse)
    r, u, v = randn(2, 16, 4, 4), randn(2, 6, 4, 4, seed=1), randn(2, 6, 4, 4, seed=2)
    out = pgm(u, pgm.local_key(r, False), pgm.local_key(r, True), v)
    assert torch.equal(out, u)


def test_position_guidance_adds_what_it_reads_from_the_previous_frame():
    pgm = lcm.PositionGuidance(16, 8, 6)
    with torch.no_grad():
        pgm.out.weight.copy_(torch.eye(6)[:, :, None, None])
    r, before = randn(2, 16, 4, 4), randn(2, 16, 4, 4, seed=3)
    u, v = randn(2, 6, 4, 4, seed=1), randn(2, 6, 4, 4, seed=2)
    code = lcm.sine_position(16, 4, 4)
    kq, km = pgm.query_key(r + code), pgm.memory_key(before + code)
    expected = u + by_hand(km[:, :, None], v[:, :, None], kq, 8**-0.5)
    out = pgm(u, pgm.local_key(r, False), pgm.local_key(before, True), v)
    assert torch.allclose(out, expected, atol=1e-5)


def test_local_keys_know_their_place_only_with_the_code():
    flat = torch.ones(1, 16, 8, 8)
    inner = (..., slice(1, -1), slice(1, -1))  # zero padding tells the border apart
    for position in (True, False):
        key = lcm.PositionGuidance(16, 8, 6, position=position).local_key(flat, False)[inner]
        assert (key.flatten(2).var(dim=2).sum() > 1e-6) == position


def test_position_share_is_that_of_the_variances():
    pgm = lcm.PositionGuidance(16, 8, 6)
    r = randn(3, 16, 8, 8)
    assert pgm.position_share(10 * r) == pytest.approx(pgm.position_share(r) / 100, rel=1e-4)


@pytest.mark.parametrize("mode", guidance.RELATIONS)
def test_new_object_relation_changes_nothing(mode):
    orm = lcm.ObjectRelation(6, 8, mode)
    u, cells = randn(2, 6, 4, 4), torch.rand(2, 4, 4, generator=rng()) > 0.5
    assert torch.equal(orm(u, randn(2, 6, 4, 4, seed=1), cells), u)


def test_object_relation_reads_the_objects_cells_only():
    orm = lcm.ObjectRelation(6, 8)
    with torch.no_grad():
        orm.out.weight.copy_(torch.eye(6)[:, :, None, None])
    u, v = randn(2, 6, 4, 4), randn(2, 6, 4, 4, seed=1)
    cells = torch.rand(2, 4, 4, generator=rng(2)) > 0.6
    out = orm(u, v, cells)
    for b in range(2):
        keys, values = orm.key(v)[b][:, cells[b]], v[b][:, cells[b]]
        weights = (8**-0.5 * keys.T @ orm.query(u)[b].flatten(1)).softmax(dim=0)
        assert torch.allclose(out[b].flatten(1), u[b].flatten(1) + values @ weights, atol=1e-5)
    other = torch.where(cells[:, None], v, randn(2, 6, 4, 4, seed=9))
    assert torch.allclose(orm(u, other, cells), out, atol=1e-6)


def test_one_object_cell_is_a_prototype():
    u, v = randn(1, 6, 4, 4), randn(1, 6, 4, 4, seed=1)
    cells = torch.zeros(1, 4, 4, dtype=torch.bool)
    cells[0, 2, 1] = True
    for mode in guidance.RELATIONS:
        orm = lcm.ObjectRelation(6, 8, mode)
        with torch.no_grad():
            orm.out.weight.copy_(torch.eye(6)[:, :, None, None])
        assert torch.allclose(orm(u, v, cells), u + v[:, :, 2:3, 1:2], atol=1e-5)


def test_object_cells_are_more_than_half_full_or_the_fullest():
    mask = torch.tensor([[[0.6, 0.5], [0.0, 0.9]], [[0.1, 0.4], [0.0, 0.2]]])
    expected = torch.tensor([[[True, False], [False, True]], [[False, True], [False, False]]])
    assert torch.equal(guidance.object_cells(mask), expected)


def test_unknown_kinds_are_named():
    with pytest.raises(ValueError, match="fuse"):
        lcm.PositionGuidance(16, 8, 6, "sum")
    with pytest.raises(ValueError, match="mode"):
        lcm.ObjectRelation(6, 8, "max")
    for modules in (("pgm",), ("grm", "xyz")):
        with pytest.raises(ValueError, match="modules"):
            lcm.LCM(modules)


# --- soft aggregation ---------------------------------------------------------------------------


def test_soft_aggregation_by_its_formula():
    p = torch.rand(3, 4, 5, generator=rng()) * 0.98 + 0.01
    logits = lcm.soft_aggregate(p)
    assert logits.shape == (4, 4, 5)
    everything = torch.cat([(1 - p).prod(0, keepdim=True), p])
    assert torch.allclose(logits, (everything / (1 - everything)).log(), atol=1e-4)
    assert torch.allclose(logits.softmax(0).sum(0), torch.ones(4, 5))


def test_soft_aggregation_of_one_object_doubles_its_logit():
    p = torch.rand(1, 4, 5, generator=rng()) * 0.9 + 0.05
    joined = lcm.soft_aggregate(p).softmax(0)[1]
    assert torch.allclose(joined, torch.sigmoid(2 * torch.logit(p[0])), atol=1e-5)


def test_soft_aggregation_bears_certainty():
    p = torch.tensor([0.0, 1.0])[:, None, None]
    assert lcm.soft_aggregate(p).isfinite().all()
    assert lcm.soft_aggregate(p).softmax(0)[:, 0, 0].argmax() == 2
    with pytest.raises(ValueError, match="no object"):
        lcm.soft_aggregate(torch.zeros(0, 4, 4))


# --- J, F and their statistics ------------------------------------------------------------------


def test_j_of_closed_forms():
    a, b, none = disk(20, 20, 9), disk(26, 20, 9), torch.zeros(64, 64, dtype=torch.bool)
    assert lcm.davis_j(a, a) == 1
    assert lcm.davis_j(none, none) == 1
    assert lcm.davis_j(a, none) == 0
    expected = (a & b).sum() / (a | b).sum()
    assert float(lcm.davis_j(a, b)) == pytest.approx(float(expected))
    cell = none.clone()
    cell[3, 3] = True
    assert float(lcm.davis_j(~none, cell)) == pytest.approx(1 / 4096)


def f_by_loops(gt, pred, bound_th):
    """The protocol, pixel by pixel, with scipy's dilation."""

    def edges(mask):
        height, width = mask.shape
        found = np.zeros_like(mask)
        for y in range(height):
            for x in range(width):
                right = mask[y, x + 1] if x + 1 < width else mask[y, x]
                below = mask[y + 1, x] if y + 1 < height else mask[y, x]
                inside = y + 1 < height and x + 1 < width
                corner = mask[y + 1, x + 1] if inside else (right if y + 1 == height else below)
                found[y, x] = len({mask[y, x], right, below, corner}) > 1
        found[-1, -1] = False
        return found

    radius = math.ceil(bound_th * math.hypot(*gt.shape))
    rows, columns = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    shape = rows**2 + columns**2 <= radius**2
    true, found = edges(gt), edges(pred)
    near_true, near_found = (ndimage.binary_dilation(e, shape) for e in (true, found))
    if not found.any() and not true.any():
        return 1.0
    if not found.any() or not true.any():
        return 0.0
    precision, recall = (
        (found & near_true).sum() / found.sum(),
        (true & near_found).sum() / true.sum(),
    )
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from([0.008, 0.03, 0.06]), st.integers(12, 40))
def test_f_is_the_protocols(seed, bound_th, size):
    noise = torch.rand(2, 1, size, size + 3, generator=rng(seed))
    smooth = F.avg_pool2d(noise, 5, 1, 2, count_include_pad=False)  # masks that touch the border
    gt, pred = smooth[:, 0] > smooth.mean()
    expected = f_by_loops(gt.numpy(), pred.numpy(), bound_th)
    assert float(lcm.davis_f(gt, pred, bound_th)) == pytest.approx(float(expected), abs=1e-6)


def test_f_of_closed_forms():
    none, full, a = (
        torch.zeros(64, 64, dtype=torch.bool),
        torch.ones(64, 64, dtype=torch.bool),
        disk(30, 30, 9),
    )
    assert lcm.davis_f(a, a) == 1
    assert lcm.davis_f(none, none) == 1
    assert lcm.davis_f(full, full) == 1  # no boundary at all
    assert lcm.davis_f(a, none) == 0
    assert lcm.davis_f(none, a) == 0
    assert lcm.davis_f(a, a.roll(1, 1)) == 1  # one pixel is tolerated at 64×64
    assert lcm.davis_f(a, a.roll(5, 1)) < 1
    assert lcm.davis_f(a, a.roll(5, 1), bound_th=6) == 1  # in pixels


def test_scores_take_batches():
    gt = torch.stack([disk(20 + i, 20, 9) for i in range(6)]).reshape(2, 3, 64, 64)
    pred = gt.roll(2, -1)
    for metric in (lcm.davis_j, lcm.davis_f, lcm.leak):
        one_by_one = [
            metric(a, b) for a, b in zip(gt.flatten(0, 1), pred.flatten(0, 1), strict=True)
        ]
        assert torch.allclose(metric(gt, pred).flatten(), torch.stack(one_by_one))


def test_masks_must_be_boolean_and_of_one_shape():
    a = disk(20, 20, 9)
    for metric in (lcm.davis_j, lcm.davis_f, lcm.leak):
        with pytest.raises(TypeError, match="boolean"):
            metric(a, a.float())
        with pytest.raises(ValueError, match="share their shape"):
            metric(a, a[:32])
    with pytest.raises(ValueError, match="bound_th"):
        lcm.davis_f(a, a, 0.0)


def official_statistics(x):
    """As davis2017-evaluation has it, with integers where it casts to 8 bits."""
    ids = np.round(np.linspace(1, len(x), 5) + 1e-10).astype(int) - 1
    bins = [x[ids[i] : ids[i + 1] + 1] for i in range(4)]
    return np.nanmean(x), np.nanmean(x > 0.5), np.nanmean(bins[0]) - np.nanmean(bins[3])


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7, 10, 22, 63, 102, 400])
def test_statistics_are_the_protocols(length):
    x = torch.rand(length, generator=rng(length), dtype=torch.float64)
    found = lcm.davis_statistics(x.float())
    expected = official_statistics(x.float().numpy())
    assert (found.mean, found.recall, found.decay) == pytest.approx(expected, abs=1e-6)


def test_statistics_leave_frames_of_nan_out():
    x = torch.tensor([0.9, math.nan, 0.7, 0.4, math.nan, 0.2])
    found = lcm.davis_statistics(x)
    assert found.mean == pytest.approx(0.55)
    assert found.recall == pytest.approx(0.5)
    with pytest.raises(ValueError, match="no frame"):
        lcm.davis_statistics(x[:0])


def test_the_first_and_last_frames_do_not_count():
    gt = torch.stack([disk(20 + i, 30, 8) for i in range(6)])[None].repeat(2, 1, 1, 1)
    pred = gt.clone()
    pred[:, [0, -1]] = False
    assert lcm.davis_evaluate(gt, pred)["J&F"] == 1
    pred[0, 2] = False
    found = lcm.davis_evaluate(gt, pred)
    assert found["J"] == pytest.approx((0.75 + 1) / 2)  # over objects
    assert found["J&F"] == pytest.approx((found["J"] + found["F"]) / 2)
    with pytest.raises(ValueError, match="three frames"):
        lcm.davis_evaluate(gt[:, :2], pred[:, :2])
    with pytest.raises(ValueError, match="an object"):
        lcm.davis_evaluate(gt[:0], pred[:0])


def test_leak_is_the_share_on_distractors():
    pred, other = disk(20, 20, 6), disk(40, 20, 6)
    assert lcm.leak(pred, other) == 0
    assert lcm.leak(pred | other, other) == pytest.approx(0.5)
    assert lcm.leak(torch.zeros_like(pred), other).isnan()


def test_area_matched_masks_have_the_area_and_the_highest_pixels():
    soft = torch.rand(3, 5, 7, generator=rng())
    area = torch.tensor([0, 4, 35])
    masks = lcm.area_matched(soft, area)
    assert masks.flatten(1).sum(1).tolist() == area.tolist()
    assert soft[1][masks[1]].min() >= soft[1][~masks[1]].max()
    ties = lcm.area_matched(torch.zeros(1, 2, 3), torch.tensor([4]))
    assert ties.tolist() == [[[True, True, True], [True, False, False]]]
    with pytest.raises(ValueError, match="areas"):
        lcm.area_matched(soft, torch.tensor([0, 1, 36]))


# --- the matcher --------------------------------------------------------------------------------

READS = [
    lcm.Read("global"),
    lcm.Read("position", 0.0),
    lcm.Read("position", 20.0),
    lcm.Read("window", 2),
    lcm.Read("kernel", 2.0),
    lcm.Read("copy"),
]


def moving_square(steps=4, size=64, speed=4, twin=False):
    """A bright square that moves right over a dark noisy ground, above a resting twin or not."""
    frames = 0.1 * torch.rand(1, steps, 3, size, size, generator=rng(5))
    mask = torch.zeros(1, steps, size, size, dtype=torch.bool)
    for t in range(steps):
        mask[0, t, 8:24, 8 + speed * t : 24 + speed * t] = True
    frames[mask[:, :, None].expand_as(frames)] = 1.0
    if twin:
        frames[..., 40:56, 8:24] = 1.0
    return frames, mask


def slow_matcher(frames, mask0, read):
    """The matcher with loops over clips, frames and cells."""
    first = F.avg_pool2d(mask0[:, None].float(), 4)[:, 0].flatten(1)
    small = F.avg_pool2d(frames.flatten(0, 1), 2)
    cells = small.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    cells = cells - cells.mean(dim=1, keepdim=True)
    keys = (cells / cells.norm(dim=2, keepdim=True)).unflatten(0, frames.shape[:2])
    code = F.normalize(lcm.sine_position(64, 16, 16).flatten(1), dim=0)
    results = []
    for b in range(len(frames)):
        masks = [first[b]]
        for t in range(1, frames.shape[1]):
            out = torch.zeros(256)
            for j in range(256):
                if read.kind == "global":
                    logits = torch.cat([keys[b, s] @ keys[b, t, j] for s in range(t)]) / 0.05
                    values = torch.cat(masks)
                else:
                    logits = keys[b, t - 1] @ keys[b, t, j] / 0.05
                    values = masks[-1]
                    if read.kind == "position":
                        logits = logits + read.strength * code.T @ code[:, j]
                    else:
                        apart = [
                            abs(i // 16 - j // 16) > 2 or abs(i % 16 - j % 16) > 2
                            for i in range(256)
                        ]
                        logits = logits.masked_fill(torch.tensor(apart), -torch.inf)
                out[j] = logits.softmax(0) @ values
            masks.append(out)
        results.append(torch.stack(masks))
    return torch.stack(results)


@pytest.mark.parametrize("read", [READS[0], READS[2], READS[3]], ids=lambda read: read.kind)
def test_matcher_is_its_loops(read):
    frames, mask = moving_square(3)
    fast = lcm.training_free_propagate(frames, mask[:, 0], [read])[0].flatten(2)
    assert torch.allclose(fast, slow_matcher(frames, mask[:, 0], read), atol=1e-5)


@pytest.mark.parametrize(
    ("every", "kept"),
    [(1, [0, 1, 2, 3, 4, 5, 6]), (2, [0, 2, 4, 6]), (5, [0, 5, 6]), (None, [0, 6])],
)
def test_memory_keeps_the_first_every_nth_and_the_previous_frame(every, kept):
    assert lcm.memory_frames(7, every) == kept
    frames, mask = moving_square(2)
    with pytest.raises(ValueError, match="at least 1"):
        lcm.training_free_propagate(frames, mask[:, 0], READS[:1], 0)


def test_without_more_memory_the_global_read_has_the_first_and_the_previous_frame():
    frames, mask = moving_square(4)
    soft = lcm.training_free_propagate(frames, mask[:, 0], READS[:1], None)[0, 0].flatten(1)
    keys = lcm.patch_keys(frames)[0]
    logits = torch.cat([keys[0], keys[2]]) @ keys[3].T / 0.05
    by_hand = torch.cat([soft[0], soft[2]]) @ logits.softmax(dim=0)
    assert torch.allclose(soft[3], by_hand, atol=1e-5)


def test_all_reads_in_one_batch_or_alone():
    clips = [moving_square(3, speed=s) for s in (2, 5)]
    frames, mask = (torch.cat(parts) for parts in zip(*clips, strict=True))
    together = lcm.training_free_propagate(frames, mask[:, 0], READS)
    assert together.shape == (6, 2, 3, 16, 16)
    for read, soft in zip(READS, together, strict=True):
        for i in range(2):
            alone = lcm.training_free_propagate(frames[i : i + 1], mask[i : i + 1, 0], [read])
            assert torch.allclose(alone[0, 0], soft[i], atol=1e-6)


def test_position_keeps_the_twin_out():
    frames, mask = moving_square(5, speed=3, twin=True)
    soft = lcm.training_free_propagate(frames, mask[:, 0], READS)
    on_twin, on_target = (
        soft[:, 0, -1, 10:14, 2:6].mean((1, 2)),
        soft[:, 0, -1, 2:6, 5:9].mean((1, 2)),
    )
    assert on_twin[0] > 0.8 * on_target[0]  # the global read cannot tell
    assert on_twin[2] < 0.05 * on_target[2]


def test_copy_never_moves():
    frames, mask = moving_square(4)
    soft = lcm.training_free_propagate(frames, mask[:, 0], READS)[-1]
    assert torch.equal(soft[0, 0], soft[0, 3])


def test_a_clip_of_one_frame_is_its_first_mask():
    frames, mask = moving_square(1)
    soft = lcm.training_free_propagate(frames, mask[:, 0], READS)
    assert torch.equal(soft[0, 0, 0], F.avg_pool2d(mask[:, 0].float(), 4)[0])


def test_a_kernel_speaks_around_its_best_cell():
    logits = randn(1, 5, 256)
    bias = matcher._around_best(logits, 2.0)
    best = int(logits[0, 3].argmax())
    other = (best + 17) % 256
    distance = (best // 16 - other // 16) ** 2 + (best % 16 - other % 16) ** 2
    assert bias[0, 3, best] == 0
    assert bias[0, 3, other] == pytest.approx(-distance / 8)


@pytest.mark.parametrize("wrong", [("mean", 0.0), ("position", -1.0), ("kernel", 0.0)])
def test_unknown_reads_are_refused(wrong):
    with pytest.raises(ValueError, match=wrong[0]):
        lcm.Read(*wrong)


def test_scores_leave_hidden_frames_out():
    frames, mask = moving_square(4)
    mask[0, 2] = False  # the target vanishes and returns
    clips = lcm.TwinClips(frames, mask, torch.zeros_like(mask), torch.zeros(1, dtype=torch.int64))
    assert clips.counted.tolist() == [[False, True, False, True]]
    scores = lcm.score(mask.float(), clips, matched=False)
    assert scores.j.isnan().tolist() == [[True, False, True, False]]
    assert scores.mean("jf").tolist() == [1.0]
    assert scores.mean("leak").tolist() == [0.0]
    empty = lcm.score(torch.zeros(mask.shape), clips, matched=False)
    assert empty.mean("empty").tolist() == [1.0]
    assert empty.mean("leak").isnan().all()


# --- first masks --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, m: (f, m * 0.5), "binary"),
        (lambda f, m: (f, m * 0), "empty"),
        (lambda f, m: (f, m[:, :0]), "no object"),
        (lambda f, m: (f[:, :0], m), "no frame"),
        (lambda f, m: (f, m[..., :32]), "do not lie"),
        (lambda f, m: (f, m[..., :60]), "do not lie"),
        (lambda f, m: (f, m.repeat(1, 2, 1, 1)), "overlap"),
    ],
)
def test_first_masks_are_checked(change, message):
    frames, mask = moving_square(2)
    with pytest.raises(ValueError, match=message):
        network.check_first_masks(*change(frames, mask[:, :1].float()), 8)


def test_masks_are_checked_when_memorised():
    model = lcm.LCM(("grm",))
    with pytest.raises(ValueError, match="multiples of 8"):
        model.memorize(torch.rand(1, 3, 60, 64), torch.ones(1, 1, 60, 64))
    with pytest.raises(ValueError, match="do not lie"):
        model.memorize(torch.rand(1, 3, 64, 64), torch.ones(1, 1, 64, 32))


def test_decay_bins_share_their_borders():
    assert metrics.decay_bins(9) == [slice(0, 3), slice(2, 5), slice(4, 7), slice(6, 9)]
