"""The network, its training, the studies and the recipes."""

from dataclasses import replace

import pytest
import torch

from toolkit.scenes import lcm
from toolkit.scenes.lcm import network, study, training

CPU = torch.device("cpu")
TINY = lcm.Recipe(
    base_steps=2, arm_steps=1, batch=2, sets=("tune",), backbone=False, intervals=(), warmup=0
)


def rng(number=0):
    return torch.Generator().manual_seed(number)


def small(modules=("grm", "pgm", "orm"), seed=0, **options):
    torch.manual_seed(seed)
    return lcm.LCM(modules, key_dim=8, value_dim=12, width=8, **options).eval()


def awake(model, seed=1):
    """The same network with modules that no longer put out zero."""
    for module in (model.pgm, model.orm):
        if module is not None:
            torch.nn.init.normal_(module.out.weight, std=0.3, generator=rng(seed))
    return model


def scene(batch=1, time=4, height=32, width=40, objects=1, seed=0):
    """Noise, and rectangles as the first masks."""
    frames = torch.rand(batch, time, 3, height, width, generator=rng(seed))
    mask = torch.zeros(batch, objects, height, width)
    for k in range(objects):
        mask[:, k, 4:20, 4 + 12 * k : 12 + 12 * k] = 1
    return frames, mask


@pytest.fixture
def synthetic(monkeypatch):
    """Bright squares that move, in place of the prepared clips."""

    def twins(name, decode=False):
        n, time = 6, 12 if name == "long" else 8
        frames = 0.3 * torch.rand(n, time, 3, 64, 64, generator=rng(len(name)))
        mask = torch.zeros(n, time, 64, 64, dtype=torch.bool)
        for i in range(n):
            for t in range(time):
                mask[i, t, 8 + 2 * i : 24 + 2 * i, 4 + 3 * t : 18 + 3 * t] = True
        frames[mask[:, :, None].expand_as(frames)] += 0.6
        other = mask.flip(2)
        return lcm.TwinClips(frames, mask, other, torch.arange(n) % 2)

    monkeypatch.setattr(study, "load_twins", twins)
    monkeypatch.setattr(training, "load_twins", twins)
    return twins


# --- the network --------------------------------------------------------------------------------


@torch.no_grad()
def test_new_modules_leave_the_global_read_as_it_was():
    frames, mask = scene()
    base = small(("grm",))
    full = small()
    full.load_state_dict(base.state_dict(), strict=False)
    assert torch.equal(base.propagate(frames, mask), full.propagate(frames, mask))
    assert not torch.allclose(base.propagate(frames, mask), awake(full).propagate(frames, mask))


@torch.no_grad()
def test_probabilities_sum_to_one_and_frame_0_is_given():
    frames, mask = scene(objects=2)
    probs = awake(small()).propagate(frames, mask)
    assert probs.shape == (1, 4, 3, 32, 40)
    assert torch.allclose(probs.sum(dim=2), torch.ones(1, 4, 32, 40), atol=1e-5)
    assert torch.equal(probs[:, 0, 1:], mask)


@torch.no_grad()
def test_clips_and_objects_are_a_batch():
    frames, mask = scene(batch=3, objects=2)
    mask[1, :] = mask[1, :].flip(-1)
    model = awake(small())
    together = model.propagate(frames, mask)
    for i in range(3):
        alone = model.propagate(frames[i : i + 1], mask[i : i + 1])
        assert torch.allclose(together[i : i + 1], alone, atol=1e-5)
    swapped = model.propagate(frames, mask.flip(1))
    assert torch.allclose(swapped[:, :, [0, 2, 1]], together, atol=1e-5)


@torch.no_grad()
def test_the_future_is_never_read():
    frames, mask = scene(time=6)
    model = awake(small())
    changed = frames.clone()
    changed[:, 4:] = torch.rand(changed[:, 4:].shape, generator=rng(3))
    before, after = model.propagate(frames, mask), model.propagate(changed, mask)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.equal(before[:, 4:], after[:, 4:])


@torch.no_grad()
@pytest.mark.parametrize(
    ("every", "kept"),
    [
        (1, [1, 2, 3, 4, 5, 6, 7]),
        (2, [1, 2, 2, 3, 3, 4, 4]),
        (5, [1, 2, 2, 2, 2, 2, 3]),
        (None, [1] + [2] * 6),
    ],
)
def test_memory_holds_the_first_the_previous_and_every_nth_frame(every, kept, monkeypatch):
    frames, mask = scene(time=8)
    model, sizes = small(("grm",)), []
    original = network.memory_read

    def spy(mk, mv, qk):
        sizes.append(mk.shape[2])
        return original(mk, mv, qk)

    monkeypatch.setattr(network, "memory_read", spy)
    model.propagate(frames, mask, every)
    assert sizes == kept


@torch.no_grad()
def test_soft_masks_are_fed_back_and_the_first_one_is_exact(monkeypatch):
    frames, mask = scene(time=4)
    model, given = awake(small()), []
    original = lcm.LCM.memorize

    def spy(self, frame, mask, others=None):
        given.append(mask)
        return original(self, frame, mask, others)

    monkeypatch.setattr(lcm.LCM, "memorize", spy)
    probs = model.propagate(frames, mask)
    assert torch.equal(given[0], mask)
    for t in (1, 2):
        assert torch.equal(given[t], probs[:, t, 1:])
        assert ((given[t] > 0.01) & (given[t] < 0.99)).any()


@torch.no_grad()
def test_guidance_reads_the_previous_frame_and_relation_the_first(monkeypatch):
    frames, mask = scene(time=5)
    model, seen = awake(small()), []
    pgm, orm = type(model.pgm).forward, type(model.orm).forward
    memories = []
    original = lcm.LCM.memorize

    def memorise(self, frame, mask, others=None):
        memories.append(original(self, frame, mask, others))
        return memories[-1]

    def guide(self, u, kq, km, vm):
        seen.append(("pgm", vm))
        return pgm(self, u, kq, km, vm)

    def relate(self, u, v, cells):
        seen.append(("orm", v))
        return orm(self, u, v, cells)

    monkeypatch.setattr(lcm.LCM, "memorize", memorise)
    monkeypatch.setattr(lcm.PositionGuidance, "forward", guide)
    monkeypatch.setattr(lcm.ObjectRelation, "forward", relate)
    model.propagate(frames, mask)
    for t, (_, value) in enumerate(x for x in seen if x[0] == "pgm"):
        assert torch.equal(value, memories[t].values[:, :, 0])
    for _, value in (x for x in seen if x[0] == "orm"):
        assert torch.equal(value, memories[0].values[:, :, 0])


@torch.no_grad()
def test_any_size_is_padded_and_cut():
    frames, mask = scene(height=29, width=43)
    probs = small().propagate(frames, mask)
    assert probs.shape[-2:] == (29, 43)
    assert torch.equal(probs[:, 0, 1:], mask)


@torch.no_grad()
def test_one_frame_is_its_mask():
    frames, mask = scene(time=1)
    assert torch.equal(small().propagate(frames, mask)[:, 0, 1:], mask)


@torch.no_grad()
def test_objects_may_vanish_in_between():
    frames, mask = scene(time=6)
    frames[:, 2:4] = 0
    assert awake(small()).propagate(frames, mask).isfinite().all()


def test_wrong_calls_are_refused():
    frames, mask = scene()
    model = small()
    with pytest.raises(ValueError, match="every"):
        model.propagate(frames, mask, every=0)
    with pytest.raises(ValueError, match="binary"):
        model.propagate(frames, 0.4 * mask)
    with pytest.raises(ValueError, match="do not lie"):
        model.propagate(frames, mask[..., :32])
    memory = model.memorize(frames[:, 0], mask)
    with pytest.raises(ValueError, match="do not belong"):
        model.segment(frames[:, 0].repeat(2, 1, 1, 1), memory)


@torch.no_grad()
@pytest.mark.parametrize("fuse", ["add", "gate", "concat"])
@pytest.mark.parametrize("orm", ["attn", "pool"])
def test_every_variant_runs(fuse, orm):
    frames, mask = scene()
    assert awake(small(fuse=fuse, orm=orm)).propagate(frames, mask).isfinite().all()


# --- training -----------------------------------------------------------------------------------


def test_training_clips_show_their_target_and_keep_masks_with_pictures(synthetic):
    clips = synthetic("train")
    frames, mask = lcm.training_clips(clips, 32, 3, 2, rng())
    assert frames.shape == (32, 3, 3, 64, 64)
    assert (mask[:, 0].flatten(1).sum(1) >= 20).all()
    for t in range(3):
        inside = (frames[:, t].mean(1) * mask[:, t]).flatten(1).sum(1) / mask[:, t].flatten(1).sum(
            1
        )
        outside = (frames[:, t].mean(1) * ~mask[:, t]).flatten(1).sum(1) / (~mask[:, t]).flatten(
            1
        ).sum(1)
        assert (inside > outside + 0.2).all()


def test_a_skip_is_a_number_of_frames_left_out(synthetic):
    clips = synthetic("train")
    for skip, most in ((0, 3), (1, 6), (9, 9)):
        _, mask = lcm.training_clips(clips, 64, 3, skip, rng())
        x = torch.stack([m.float().mean(-2).argmax(-1) for m in mask.flatten(0, 1)]).reshape(64, 3)
        y = torch.stack([m.float().mean(-1).argmax(-1) for m in mask.flatten(0, 1)]).reshape(64, 3)
        step = torch.maximum(x.diff(dim=1).abs(), y.diff(dim=1).abs())
        assert step.max() == most  # 3 px a frame


def test_too_short_clips_and_invisible_targets_are_refused(synthetic):
    clips = synthetic("train")
    with pytest.raises(ValueError, match="cannot cut"):
        lcm.training_clips(clips, 2, 9, 0, rng())
    with pytest.raises(ValueError, match="large enough"):
        lcm.training_clips(clips, 2, 3, 0, rng(), least=5000)


def test_loss_is_zero_for_the_truth_and_counts_predicted_frames_only():
    mask = torch.zeros(2, 3, 8, 8, dtype=torch.bool)
    mask[:, :, 2:5, 2:5] = True
    probs = torch.stack([~mask, mask], dim=2).float()
    assert training.mask_loss(probs, mask) < 1e-3
    probs[:, 0] = 0.5
    assert training.mask_loss(probs, mask) < 1e-3
    probs[:, 1] = 0.5
    assert training.mask_loss(probs, mask) > 1


def test_matching_loss_is_zero_where_the_read_carries_the_true_mask():
    mask = torch.zeros(2, 3, 16, 16, dtype=torch.bool)
    mask[:, 0, :4, :4] = mask[:, 1, 4:8, 4:8] = mask[:, 2, 8:12, 8:12] = True
    truth = mask[:, 1:, 2::4, 2::4].float()
    assert training.matching_loss(truth, mask) < 1e-3
    assert training.matching_loss(truth.flip(1), mask) > 1
    assert training.matching_loss(torch.full_like(truth, 0.5), mask) > 1


@torch.no_grad()
def test_the_mask_travels_with_the_values_and_is_carried_by_the_affinities():
    frames, mask = scene(time=2)
    model = small(("grm",))
    memory = model.memorize(frames[:, 0], mask)
    cells = torch.nn.functional.avg_pool2d(mask, 4)
    assert torch.equal(memory.values[:, -1], network.MASK_GAIN * cells)
    carried = []
    plain = model.propagate(frames, mask)
    assert torch.equal(model.propagate(frames, mask, carried=carried), plain)
    key = model.query_key(model.query_encoder(frames[:, 1]).grid)
    by_hand = lcm.memory_read(memory.keys, cells[:, :, None], key)[:, 0]
    assert len(carried) == 1
    assert torch.allclose(carried[0], by_hand, atol=1e-5)


@torch.no_grad()
def test_keys_begin_sharp_enough_to_match():
    frames, _ = scene(batch=4)
    model = small(("grm",))
    training.sharpen(model, frames[:, 0])
    keys = model.query_key(model.query_encoder(frames[:, 0]).grid)
    keys = keys - keys.mean(dim=(0, 2, 3), keepdim=True)
    fit = keys.square().sum(dim=1).mean() * keys.shape[1] ** -0.5
    assert float(fit) == pytest.approx(training.FIT, rel=1e-4)
    assert torch.equal(model.query_key.weight, model.memory_key.weight)


@pytest.mark.slow
def test_a_network_learns_to_follow_a_square(synthetic):
    recipe = replace(TINY, batch=4, warmup=10)
    torch.manual_seed(0)
    model = lcm.LCM(("grm",))
    losses = training.train(model, recipe, synthetic("train"), 60, 3e-3, rng())
    assert losses[-10:].mean() < 0.5 * losses[:5].mean()


def test_arms_begin_at_the_base_and_see_the_same_clips(synthetic):
    base = lcm.train_base(TINY, 3, CPU)
    frozen = replace(TINY, arm_lr=0.0)
    frames, mask = scene(height=64, width=64)
    with torch.no_grad():
        expected = base.propagate(frames, mask)
    for arm in training.ARMS:
        model = lcm.train_arm(base, frozen, arm, 3)
        with torch.no_grad():
            assert torch.equal(model.propagate(frames, mask), expected)
        assert (model.pgm is not None) == ("pgm" in arm or arm == "lcm")
        assert (model.orm is not None) == ("orm" in arm or arm == "lcm")
    assert base.pgm is None


def test_a_seed_repeats_itself(synthetic):
    first, again = (lcm.run_study(TINY, 5, CPU) for _ in range(2))
    assert first.keys() == again.keys()
    assert first["pgm/position_share"] == again["pgm/position_share"]
    assert first["pgm/position_share"] != lcm.run_study(TINY, 6, CPU)["pgm/position_share"]


# --- studies ------------------------------------------------------------------------------------


def test_decay_compares_the_first_and_last_quarters():
    j = torch.linspace(1, 0, 24)[None]
    scores = lcm.Scores(j, j, j, j)
    assert study.decay(scores)[0] == pytest.approx(float(j[0, 1:8].mean() - j[0, -6:].mean()))


def test_j_after_an_occlusion():
    mask = torch.zeros(2, 6, 10, 10, dtype=torch.bool)
    mask[:, :, :5] = True
    mask[0, 2, 1:] = False  # a fifth is seen
    j = torch.arange(6.0).expand(2, 6)
    found = study.after_occlusion(lcm.Scores(j, j, j, j), mask)
    assert found[0] == 4  # the mean of frames 3, 4, 5
    assert found[1].isnan()


def test_matcher_study_names_every_read_and_clip(synthetic):
    recipe = lcm.MatcherRecipe("judge", ("global", "position_20", "copy"))
    found = lcm.run_matcher(recipe, 0, CPU)
    assert found["position_20/j"] > 0.7
    assert found["copy/j"] < 0.6
    assert {f"global/leak@{i}" for i in range(6)} < set(found)
    values = [found[f"global/jf@{i}"] for i in range(6)]
    assert found["global/jf"] == pytest.approx(sum(values) / 6)


def test_matcher_study_takes_some_clips_and_another_memory(synthetic):
    whole = lcm.MatcherRecipe("long", ("global",))
    found = lcm.run_matcher(replace(whole, count=2, every=0), 0, CPU)
    assert {"global/j@1", "global/frame_j@11"} < set(found)
    assert "global/j@2" not in found
    assert (
        found["global/frame_j@9"]
        != lcm.run_matcher(replace(whole, count=2), 0, CPU)["global/frame_j@9"]
    )


def test_networks_study_returns_what_the_chapter_reads(synthetic):
    recipe = replace(
        TINY, sets=("judge", "long"), intervals=(5, 0), decoded=("grm", "pgm", "orm", "lcm")
    )
    found = lcm.run_study(recipe, 0, CPU)
    for arm in recipe.arms:
        for name in (
            "judge_jf",
            "judge_raw_j@3",
            "long_decay",
            "decoded_j",
            "memory_5@11",
            "memory_0@1",
        ):
            assert f"{arm}/{name}" in found
    assert found["pgm/position_share"] > 0


def test_unknown_settings_are_refused():
    with pytest.raises(ValueError, match="arms"):
        lcm.Recipe(arms=("stm",))
    with pytest.raises(ValueError, match="sets"):
        lcm.Recipe(sets=("davis",))
    with pytest.raises(ValueError, match="need a step"):
        lcm.Recipe(frames=1)
    with pytest.raises(ValueError, match="clips must be"):
        lcm.MatcherRecipe("davis")
    with pytest.raises(TypeError):
        lcm.experiment(3, 0, CPU)


def test_the_experiment_takes_both_recipes(synthetic):
    assert "copy/j" in lcm.experiment(lcm.MatcherRecipe("tune", ("copy",)), 0, CPU)
    assert "grm/tune_j" in lcm.experiment(replace(TINY, arms=("grm",)), 0, CPU)


def test_the_shared_backbone_is_where_both_encoders_begin():
    base = lcm.train_base(replace(TINY, backbone=True, lr=0.0), 0, CPU)
    weights = lcm.pretrained_backbone().state_dict()
    for encoder in (base.query_encoder, base.memory_encoder):
        for name, value in encoder.backbone.state_dict().items():
            assert torch.equal(value, weights[name])
