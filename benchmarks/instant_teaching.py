"""Speed of a training step against torchvision's, of every arm's step, and of labelling."""

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign, box_iou

from _report import report
from toolkit.data import SCENE_CLASSES, Scenes, load_emoji_scenes
from toolkit.runtime import race, start
from toolkit.scenes.boxes import pad_boxes, pad_labels
from toolkit.scenes.instant_teaching import (
    Batch,
    InstantTeacher,
    TinyRCNN,
    co_rectify,
    judge_labels,
    one_hot,
    pseudo_label,
)
from toolkit.scenes.pyramid import EmojiPyramid

STEP, LABEL, JUDGE = 1.0, 1.3, 3.0  # targets: at least so many times faster
RATIOS = {"static": 2.2, "instant": 2.6, "two networks": 5.2}  # at most so many supervised steps
CLASSES, BATCH = len(SCENE_CLASSES), 8


def main() -> None:
    """Print times and ratios."""
    start()
    step()
    arms()
    labelling()
    judging()


def step() -> None:
    """Forward and backward pass on labelled pictures, against torchvision's `FasterRCNN`.

    The peer has the same backbone, anchors, numbers of proposals and samples, and head.
    """
    scenes = load_emoji_scenes("square", "train")
    x = scenes.images[:BATCH].float() / 255
    ours, theirs = TinyRCNN(CLASSES).train(), peer().train()
    soft = [one_hot(some, CLASSES) for some in scenes.labels[:BATCH]]
    generator = torch.Generator().manual_seed(0)
    targets = [
        {"boxes": boxes, "labels": labels + 1}
        for boxes, labels in zip(scenes.boxes[:BATCH], scenes.labels[:BATCH], strict=True)
    ]

    def mine() -> None:
        ours.loss(x, scenes.boxes[:BATCH], soft, generator)["total"].backward()

    def torchvisions() -> None:
        sum(theirs(list(x), targets).values()).backward()

    times = race(9, 3, ours=mine, torchvision=torchvisions)
    report(f"training step, {BATCH} pictures", 1e3 * times["ours"], "ms")
    report("  torchvision's FasterRCNN / ours", times["torchvision"] / times["ours"], at_least=STEP)


class Levels(nn.Module):
    """The pyramid as torchvision wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.pyramid = EmojiPyramid((4, 8))
        self.out_channels = 48

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return OrderedDict((str(i), one) for i, one in enumerate(self.pyramid(x)))


def peer() -> FasterRCNN:
    ratios = (0.6, 1.0, 1.7)
    model = FasterRCNN(
        Levels(),
        num_classes=None,
        min_size=64,
        max_size=64,
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        rpn_anchor_generator=AnchorGenerator(((14,), (26,)), (ratios, ratios)),
        rpn_pre_nms_top_n_train=50,
        rpn_post_nms_top_n_train=40,
        rpn_batch_size_per_image=64,
        rpn_fg_iou_thresh=0.6,
        rpn_bg_iou_thresh=0.3,
        box_roi_pool=MultiScaleRoIAlign(["0", "1"], 5, 1, canonical_scale=24, canonical_level=3),
        box_head=nn.Sequential(
            nn.Flatten(), nn.Linear(1200, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()
        ),
        box_predictor=Predictor(),
        box_batch_size_per_image=32,
    )
    return model


class Predictor(nn.Module):
    """Class scores and boxes; torchvision's are a box for each class."""

    def __init__(self) -> None:
        super().__init__()
        self.scores, self.boxes = nn.Linear(128, CLASSES + 1), nn.Linear(128, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.scores(x), self.boxes(x).repeat(1, CLASSES + 1)


def arms() -> None:
    """A training step of every arm, in units of a supervised one."""
    scenes, others = load_emoji_scenes("square", "train"), load_emoji_scenes("square", "unlabelled")
    labelled = batch(scenes)
    images = Batch(others.images[:BATCH])
    frozen = Batch(images.images, labelled.boxes, labelled.labels)
    models = [believer(seed) for seed in range(2)]

    def one(count: int, unlabelled: Batch | None, **options: float) -> Callable[[], None]:
        generator = torch.Generator().manual_seed(0)
        teacher = InstantTeacher(models[:count], 0.3, generator=generator, **options)
        return lambda: teacher.step(labelled, unlabelled)["total"].backward()

    times = race(
        9,
        3,
        supervised=one(1, None),
        static=one(1, frozen, mix_prob=0.0),
        instant=one(1, images),
        **{"two networks": one(2, images)},
    )
    report("supervised step", 1e3 * times["supervised"], "ms")
    for arm, most in RATIOS.items():
        report(f"  {arm} / supervised", times[arm] / times["supervised"], at_most=most)


def labelling() -> None:
    """Pseudo labels of a batch at once, against one picture at a time."""
    x = load_emoji_scenes("square", "unlabelled").images[:BATCH].float() / 255
    first, second = (believer(seed) for seed in range(2))
    times = race(
        9,
        3,
        batch=lambda: pseudo_label(first, x, 0.3),
        each=lambda: [pseudo_label(first, one[None], 0.3) for one in x],
        rectified=lambda: co_rectify(first, second, x, 0.3),
    )
    report(f"labelling {BATCH} pictures", 1e3 * times["batch"], "ms")
    report("  one by one / at once", times["each"] / times["batch"], at_least=LABEL)
    report("  co-rectify / at once", times["rectified"] / times["batch"])


def judging() -> None:
    """Which labels are right, all pictures at once, against a loop over pictures and labels."""
    truth = load_emoji_scenes("square", "unlabelled", hidden_truth=True)
    model, boxes, labels = believer(0), truth.boxes[:100], truth.labels[:100]
    found = pseudo_label(model, truth.images[:100].float() / 255, 0.05)

    def loop() -> list:
        return [
            matched(box_iou(one.boxes, b), one.labels[:, None] == k[None], threshold / 100)
            for one, b, k in zip(found, boxes, labels, strict=True)
            for threshold in range(50, 100, 5)
        ]

    judged = judge_labels(found, boxes, labels, CLASSES)
    assert sum(sum(hits) for hits in loop()) == judged.hit.sum()
    times = race(5, 1, ours=lambda: judge_labels(found, boxes, labels, CLASSES), reference=loop)
    count = sum(len(one.scores) for one in found)
    report(f"judging {count} labels at ten thresholds", 1e3 * times["ours"], "ms")
    report("  a loop over labels / ours", times["reference"] / times["ours"], at_least=JUDGE)


def matched(iou: Tensor, same: Tensor, least: float) -> list[bool]:
    """The rule of `judge_labels` for one picture and threshold, read from its text."""
    free, hits = [True] * iou.shape[1], []
    for row, alike in zip(iou.tolist(), same.tolist(), strict=True):
        open_ = [v if f and a else -1.0 for v, f, a in zip(row, free, alike, strict=True)]
        place = max(range(len(open_)), key=open_.__getitem__) if open_ else -1
        hits.append(place >= 0 and open_[place] >= least)
        if hits[-1]:
            free[place] = False
    return hits


def believer(seed: int) -> TinyRCNN:
    """A network with scores that pass a threshold, as after some training."""
    torch.manual_seed(seed)
    model = TinyRCNN(CLASSES)
    nn.init.normal_(model.classify.weight, std=0.3)
    return model


def batch(scenes: Scenes) -> Batch:
    some = pad_boxes(scenes.boxes[:BATCH]), pad_labels(scenes.labels[:BATCH])
    return Batch(scenes.images[:BATCH], *some)


if __name__ == "__main__":
    main()
