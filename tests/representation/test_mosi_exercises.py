"""Typical wrong answers to the chapter's exercises: each must fail a test that its cell points to.

The notebook's own cells run here, with one definition replaced by a wrong one.
"""

import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

from toolkit.representation import mosi

NOTEBOOK = Path(__file__).parents[2] / "book/representation/mosi_exercises.ipynb"
SOLUTIONS = ("counts", "posterior", "motion", "mask", "measure")
TESTS = {
    "counts": ("counts-test", "ceiling-test"),
    "posterior": ("posterior-test",),
    "motion": ("ramp", "starts", "batched"),
    "mask": ("mask-test",),
    "measure": ("measure-test",),
}


@pytest.fixture(scope="module")
def cells():
    """Sources of the code cells by id."""
    notebook = nbformat.read(NOTEBOOK, 4)
    return {cell.id: cell.source for cell in notebook.cells if cell.cell_type == "code"}


@pytest.fixture(scope="module")
def solved(cells):
    """The names that the notebook's set-up and right answers define; nothing is trained."""
    names = {}
    for name in ("parameters", "setup", *SOLUTIONS):
        exec(cells[name], names)
    names["pool"] = mosi.MotionClass()
    return names


def grade(cells, names, exercise):
    """Run the tests of an exercise; those of masks need the clips of an earlier one."""
    if exercise in ("motion", "mask"):
        names = names | {"ramp": torch.arange(54.0).expand(1, 54, 54)}
        names["picture"] = torch.rand(3, 54, 54, generator=names["rng"](8))
    for test in TESTS[exercise]:
        exec(cells[test], names)


class Knows(torch.nn.Module):
    """A network that recognises test clips it was shown, and the mirrored ones where they differ.

    Args:
        sideways: whether it tells left from right; otherwise it says right for both.
    """

    def __init__(self, clips, labels, pool, sideways):
        super().__init__()
        mirrored = pool.hflip(labels)
        self.clips = torch.cat([clips, clips.flip(-1)])
        self.labels = torch.cat([labels, mirrored])
        self.pool, self.sideways = pool, sideways

    def forward(self, clips):
        known = mosi.standardise(self.clips).flatten(1)
        guess = self.labels[torch.cdist(clips.flatten(1), known).argmin(dim=1)]
        if not self.sideways:  # both directions at this speed: the positive one
            speeds = self.pool.speeds[guess]
            guess = torch.where(speeds[:, 0] < 0, self.pool.hflip(guess), guess)
        return torch.nn.functional.one_hot(guess, self.pool.n).float()


@pytest.fixture(scope="module")
def measured(solved):
    """The experiment's clips, and two observers in place of the two trained networks."""
    pool = solved["pool"]
    stills = mosi.photograph_stills()[-20:, 7:65, 7:65].float()[:, None] / 255
    clips, labels = mosi.pseudo_motion(stills, pool.factors, 40, 8, solved["rng"](21))
    return {
        "test_clips": clips,
        "test_labels": labels,
        "kept": Knows(clips, labels, pool, sideways=False),
        "swapped": Knows(clips, labels, pool, sideways=True),
    }


@pytest.mark.parametrize("exercise", SOLUTIONS)
def test_right_answers_pass(cells, solved, measured, exercise):
    grade(cells, solved | measured, exercise)


def wrong(text):
    """A named wrong answer: the first comment of its source names it."""
    found = re.search(r"# (.+)", text)
    assert found is not None
    return pytest.param(text, id=found[1].replace(" ", "-"))


def fails(cells, names, exercise, answer):
    """Whether a test of the exercise refuses the answer."""
    names = dict(names)
    exec(answer, names)
    with pytest.raises((AssertionError, IndexError, RuntimeError, TypeError, ValueError)):
        grade(cells, names, exercise)


@pytest.mark.parametrize(
    "answer",
    [
        wrong("def counts(K): return 4 * K, (2 * K + 1) ** 2  # rest is forgotten"),
        wrong("def counts(K): return 4 * K + 2, (2 * K + 1) ** 2  # rest once per axis"),
        wrong("def counts(K): return 4 * K + 1, (2 * K) ** 2 + 1  # pairs without one at rest"),
        wrong("def pixels_per_frame(L, C, T, s, K): return (L - C) * s / K / T  # T steps"),
        wrong("def pixels_per_frame(L, C, T, s, K): return L * s / K / (T - 1)  # whole side"),
        wrong("def pixels_per_frame(L, C, T, s, K): return (L - C) * abs(s) / K / (T - 1)  # sign"),
        wrong("def pixels_per_frame(L, C, T, s, K): return (L - C) * s / (T - 1) / 2  # K is two"),
        wrong("def ceiling(K): return 0.5  # a coin toss for all"),
        wrong("def ceiling(K): return 7 / 9  # K is two"),
        wrong("def ceiling(K): return (2 * K + 1) / (4 * K + 1)  # sideways all wrong"),
        wrong("def ceiling(K): return 0.5 + 0.5 * (2 * K + 1) / (4 * K)  # rest not counted"),
    ],
)
def test_wrong_counts_fail(cells, solved, answer):
    fails(cells, solved, "counts", answer)


@pytest.mark.parametrize(
    "answer",
    [
        wrong("def fastest_given_border(K, D): return 1.0  # the converse"),
        wrong("def fastest_given_border(K, D): return 1 / K  # the prior"),
        wrong(
            "def fastest_given_border(K, D):  # starts counted one too few\n"
            "    chance = [1 / max(D - D * s / K, 1) for s in range(1, K + 1)]\n"
            "    return chance[-1] / sum(chance)"
        ),
        wrong(
            "def fastest_given_border(K, D):  # rest counted as moving\n"
            "    chance = [1 / (D - D * s / K + 1) for s in range(1, K + 1)]\n"
            "    return chance[-1] / (sum(chance) + 2 / (D + 1))"
        ),
        wrong(
            "def fastest_given_border(K, D):  # two borders for slow speeds\n"
            "    chance = [2 / (D - D * s / K + 1) for s in range(1, K)] + [1]\n"
            "    return chance[-1] / sum(chance)"
        ),
    ],
)
def test_wrong_posteriors_fail(cells, solved, answer):
    fails(cells, solved, "posterior", answer)


MOTIONS = {
    "content-moves-with-the-label": ("share * travel", "-share * travel"),
    "T-steps": ("t / (frames - 1)", "t / frames"),
    "x-and-y-exchanged": (
        "[image[:, y : y + crop, x : x + crop]",
        "[image[:, x : x + crop, y : y + crop]",
    ),
    "last-start-left-out": ("low, high + 1,", "low, max(high, low + 1),"),
    "always-from-the-border": (
        "int(torch.randint(low, high + 1, (), generator=generator))",
        "low if delta >= 0 else high",
    ),
    "starts-ignore-the-distance": (
        "int(max(0, -delta)), int(min(travel, travel - delta))",
        "0, travel",
    ),
    "another-generator": (", generator=generator))", "))"),
    "positions-rounded": (
        "[int(min(max(p, 0), travel)) for p in way]",
        "[round(min(max(p, 0), travel)) for p in way]",
    ),
    "frames-first": ("torch.stack(windows, dim=1)", "torch.stack(windows)"),
}


@pytest.mark.parametrize("name", MOTIONS)
def test_wrong_motions_fail(cells, solved, name):
    before, after = MOTIONS[name]
    assert cells["motion"].count(before) == 1
    fails(cells, solved, "motion", cells["motion"].replace(before, after))


MASKS = {
    "inside-frozen": ("masked = clip[:, frozen", "masked = 0 + clip; clip = clip[:, frozen"),
    "frame-zero": ("frozen : frozen + 1", ":1"),
    "rows-and-columns-exchanged": (
        "slice(top, top + side), slice(left, left + side)",
        "slice(left, left + side), slice(top, top + side)",
    ),
    "one-pixel-short": ("top + side)", "top + side - 1)"),
    "input-overwritten": (
        "masked = clip[",
        "clip[:] = clip[:, frozen : frozen + 1]; masked = clip[",
    ),
    "nothing-masked": ("return masked", "return clip"),
}


@pytest.mark.parametrize("name", MASKS)
def test_wrong_masks_fail(cells, solved, name):
    before, after = MASKS[name]
    assert cells["mask"].count(before) == 1
    fails(cells, solved, "mask", cells["mask"].replace(before, after))


MEASURES = {
    "accuracy-on-clips-as-they-are": ("mosi.standardise(mixed)", "mosi.standardise(clips)"),
    "always-swapped": ("swap=swap", "swap=True"),
    "never-swapped": ("swap=swap", "swap=False"),
    "any-class-may-win": (
        "logits[rows, labels] > logits[rows, pool.time_reverse(labels)]",
        "logits.argmax(1) == labels + 0 * rows - 1",
    ),
    "axes-exchanged": (
        "right[across].float().mean(), right[down]",
        "right[down].float().mean(), right[across]",
    ),
    "rest-counted-as-up-or-down": (
        "pool.speeds[labels][:, 1] != 0",
        "pool.speeds[labels][:, 0] == 0",
    ),
    "mirrored-clips-for-directions": (
        "logits = model(mosi.standardise(clips))",
        "logits = model(mosi.standardise(mixed))",
    ),
}


@pytest.mark.parametrize("name", MEASURES)
def test_wrong_measurements_fail(cells, solved, measured, name):
    before, after = MEASURES[name]
    assert cells["measure"].count(before) == 1
    fails(cells, solved | measured, "measure", cells["measure"].replace(before, after))


def test_observers_are_what_they_stand_for(solved, measured):
    """Kept labels: half of the sideways clips; swapped labels: all."""
    clips, labels, rng = measured["test_clips"], measured["test_labels"], solved["rng"]
    with_bug = solved["measure"](measured["kept"], clips, labels, False, rng(22))
    without = solved["measure"](measured["swapped"], clips, labels, True, rng(22))
    assert np.allclose(with_bug[1:], (0.5, 1.0), atol=0.05)
    assert min(without) > 0.95
