"""What each seed trains on: a subset, its (possibly wrong) labels, standardised features."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from toolkit.data import load_emoji, load_fashion_mnist, load_glyphs, symmetric_noise
from toolkit.supervision.label_smoothing.recipe import CnnRecipe, NetworkRecipe

DATA_SETS = ("fashion", "emoji_faces", "glyphs")
SPREAD_FLOOR = 0.05  # added to a feature's standard deviation: border pixels hardly vary
FACE_VENDORS = 7  # all but fxemoji, which draws too few faces
FXEMOJI = 7


@dataclass(frozen=True)
class Sample:
    """Images and labels of S seeds; features are standardised with each seed's training set."""

    seeds: tuple[int, ...]
    classes: int
    x: Float[Tensor, "s n d"]
    y: Int[Tensor, "s n"]
    """Labels as given: some are wrong where the recipe adds noise."""
    clean: Int[Tensor, "s n"]
    val_x: Float[Tensor, "s v d"]
    val_y: Int[Tensor, "s v"]
    """As noisy as the training labels."""
    test_x: Float[Tensor, "s m d"]
    test_y: Int[Tensor, "s m"]
    other_x: Float[Tensor, "s t d"]
    """Further images, for a teacher; none where the set has no more."""
    other_y: Int[Tensor, "s t"]

    def part(self, first: int) -> "Sample":
        """The same with only the first training images; the others become validation images."""
        held = slice(first, None)
        return Sample(
            **{**self.__dict__, "x": self.x[:, :first], "y": self.y[:, :first]}
            | {"clean": self.clean[:, :first], "val_x": self.x[:, held], "val_y": self.y[:, held]}
        )


def draw_sample(recipe: NetworkRecipe, seeds: Sequence[int], device: torch.device) -> Sample:
    """The images of every seed, the same for all methods.

    Fashion-MNIST is pooled to 14×14 (`CnnRecipe` keeps its own pixels) and split per seed; emoji
    faces keep vendors apart (four to train, one to validate, two to test, per seed); look-alike
    glyphs have one fixed split.

    Raises:
        ValueError: for an unknown data set, or more images than it has.
        DataMissing: if the set is not prepared.
    """
    if recipe.data not in DATA_SETS:
        raise ValueError(f"data must be one of {', '.join(DATA_SETS)}; got {recipe.data!r}")
    parts = [_split(recipe, int(seed)) for seed in seeds]
    x, val_x, test_x, other_x = (torch.stack([p[0][i] for p in parts]) for i in range(4))
    y, val_y, test_y, other_y = (torch.stack([p[1][i] for p in parts]) for i in range(4))
    classes = int(max(y.max(), test_y.max())) + 1
    given, val_y, other_y = (
        _noisy(rows, recipe, classes, seeds, stream)
        for stream, rows in enumerate((y, val_y, other_y))
    )
    mean, spread = x.mean(1, keepdim=True), x.std(1, correction=0, keepdim=True) + SPREAD_FLOOR
    x, val_x, test_x, other_x = ((part - mean) / spread for part in (x, val_x, test_x, other_x))
    fields = (x, given, y, val_x, val_y, test_x, test_y, other_x, other_y)
    return Sample(tuple(int(s) for s in seeds), classes, *(field.to(device) for field in fields))


def posterior(sample: Sample, noise: float) -> Float[Tensor, "s n k"]:
    """The distribution that the given label was drawn from, known because the noise is ours."""
    soft = torch.full((*sample.clean.shape, sample.classes), noise / (sample.classes - 1))
    return soft.to(sample.x).scatter(-1, sample.clean[..., None], 1 - noise)


Parts = tuple[list[Tensor], list[Tensor]]


def _split(recipe: NetworkRecipe, seed: int) -> Parts:
    """Features and classes: training, validation, test, further images."""
    rng = np.random.default_rng([seed, 0])
    if recipe.data == "glyphs":
        return _glyphs()
    if recipe.data == "emoji_faces":
        return _faces(rng.permutation(FACE_VENDORS))
    images = load_fashion_mnist("train")
    sizes = (recipe.n, recipe.val_images, recipe.teacher_images)
    if min(sizes[:2]) < 1 or sum(sizes) > len(images.label):
        raise ValueError(f"Fashion-MNIST has 60,000 training images, {sum(sizes)} asked for")
    order = torch.from_numpy(rng.permutation(len(images.label))[: sum(sizes)])
    pool = 1 if isinstance(recipe, CnnRecipe) else 2
    test_x, test_y = _fashion_test(recipe.test_images, pool)
    train, val, other = (_pooled(images.images[index], pool) for index in order.split(sizes))
    y, val_y, other_y = (images.label[index] for index in order.split(sizes))
    return [train, val, test_x, other], [y, val_y, test_y, other_y]


@lru_cache(maxsize=2)
def _fashion_test(count: int, pool: int) -> tuple[Float[Tensor, "m d"], Int[Tensor, " m"]]:
    images = load_fashion_mnist("test")
    return _pooled(images.images[:count], pool), images.label[:count]


def _pooled(images: Tensor, pool: int) -> Tensor:
    """Pixels in [0, 1], averaged over pool×pool of them, in one row an image."""
    return F.avg_pool2d(images.float() / 255, pool).flatten(1)


@lru_cache(maxsize=1)
def _face_images() -> Float[Tensor, "vendors k 768"]:
    """The emoji faces that seven vendors draw, on white, 16×16 pixels in colour."""
    emoji = load_emoji()
    is_face = torch.tensor([name.startswith("face-") for name in emoji.subgroups])
    rows = torch.full((FACE_VENDORS, len(emoji.keys)), -1)
    wanted = (is_face[emoji.concept] & (emoji.vendor != FXEMOJI)).nonzero()[:, 0]
    rows[emoji.vendor[wanted], emoji.concept[wanted]] = wanted
    rows = rows[:, (rows >= 0).all(0)]
    images = emoji.images[rows.flatten()].float() / 255
    alpha = images[:, 3:]
    pooled = F.avg_pool2d(images[:, :3] * alpha + 1 - alpha, 4)
    return pooled.flatten(1).unflatten(0, tuple(rows.shape))


def _faces(vendors: np.ndarray) -> Parts:
    images = _face_images()
    classes = torch.arange(images.shape[1])
    groups = [torch.from_numpy(vendors[part]) for part in (slice(4), slice(4, 5), slice(5, None))]
    x = [images[group].flatten(0, 1) for group in groups]
    y = [classes.repeat(len(group)) for group in groups]
    return [*x, x[0][:0]], [*y, y[0][:0]]


@lru_cache(maxsize=1)
def _glyphs() -> Parts:
    """The 500 look-alike characters, averaged over 2×2 pixels."""
    parts = [load_glyphs(split, 500, lookalikes=True) for split in ("train", "val", "test")]
    x = [_pooled(part.images, 2) for part in parts]
    return [*x, x[0][:0]], [*(part.label for part in parts), parts[0].label[:0]]


def _noisy(
    y: Tensor, recipe: NetworkRecipe, classes: int, seeds: Sequence[int], stream: int
) -> Tensor:
    if not recipe.noise:
        return y
    given = []
    for row, seed in zip(y, seeds, strict=True):
        number = int(np.random.default_rng([int(seed), 1, stream]).integers(2**62))
        generator = torch.Generator().manual_seed(number)
        given.append(symmetric_noise(row, recipe.noise, classes, generator=generator).given)
    return torch.stack(given)
