"""Augmentations of a whole batch, each with one dial; label-preserving and label-mixing.

Every example gets draws of its own, and nothing loops over examples (`trivial_augment`, a peer,
does). The strength of a label-preserving augmentation lies in [0, 1]: 0 changes nothing.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

Images = Float[Tensor, "b c h w"]
Targets = Float[Tensor, "targets k"]
ImageTransform = Callable[[Tensor, torch.Generator], Tensor]
Augmentation = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]

LABEL_PRESERVING = ("affine", "colour", "affine_colour", "rand_augment", "trivial_augment")
LABEL_MIXING = ("mixup", "cutmix")


def augmentation(
    name: str, strength: float = 0.35, *, alpha: float = 1.0, flip: bool = True
) -> Augmentation:
    """An augmentation of images and soft targets by name.

    Args:
        name: one of `LABEL_PRESERVING` or `LABEL_MIXING`.
        strength: σ in [0, 1], of the dialled label-preserving ones.
        alpha: of the Beta distribution of the label-mixing ones.
        flip: whether `affine` mirrors with probability ½.

    Returns:
        `(x [b, c, h, w] in 0…1, target [b, k], generator) -> (x, target)`.

    Raises:
        ValueError: for an unknown name, or a strength or alpha out of range.
    """
    if name in LABEL_MIXING:
        _positive_alpha(alpha)
        mix = {"mixup": mixup, "cutmix": cutmix}[name]
        return lambda x, target, generator: mix(x, target, alpha, generator=generator)
    if name not in LABEL_PRESERVING:
        known = ", ".join((*LABEL_PRESERVING, *LABEL_MIXING))
        raise ValueError(f"augmentation must be one of {known}; got {name!r}")
    transform: ImageTransform
    if name == "affine_colour":
        transform = _in_turn(colour(strength), affine(strength, flip=flip))
    elif name == "affine":
        transform = affine(strength, flip=flip)
    elif name == "trivial_augment":
        transform = trivial_augment
    else:
        transform = {"colour": colour, "rand_augment": rand_augment}[name](strength)
    return lambda x, target, generator: (transform(x, generator), target)


def drawing(
    change: Augmentation, generator: torch.Generator
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The augmentation with a generator of its own: `(x, target) -> (x, target)`."""
    return lambda x, target: change(x, target, generator)


# --- label-preserving ---------------------------------------------------------------------------


def affine(strength: float, *, flip: bool = True) -> ImageTransform:
    """Rotation, scale, shift and mirroring of dialled strength; zero padding, bilinear.

    At strength σ: rotation U(±90σ°), scale 1 + 0.4σ·U(±1), shift 0.3σ·U(±1) of half a side (the
    normalised coordinates of `grid_sample`), mirrored with probability ½ (our law).

    Args:
        strength: σ in [0, 1].
        flip: whether to mirror; it does not depend on σ.

    Returns:
        `(x [b, c, h, w], generator) -> [b, c, h, w]`.

    Raises:
        ValueError: if the strength lies outside [0, 1].
    """
    _check_strength(strength)

    def transform(x: Tensor, generator: torch.Generator) -> Tensor:
        draw = 2 * _uniform(5, x, generator) - 1
        mirror = torch.where(draw[4] < 0, -1.0, 1.0) if flip else torch.ones_like(draw[4])
        theta = affine_matrices(
            math.radians(90 * strength) * draw[0],
            1 + 0.4 * strength * draw[1],
            0.3 * strength * draw[2:4].T,
            mirror.to(x.dtype),
            x.shape[2] / x.shape[3],
        )
        grid = _sampling_grid(theta, x.shape[2], x.shape[3])
        return F.grid_sample(x, grid, padding_mode="zeros", align_corners=False)

    return transform


def affine_matrices(
    angle: Float[Tensor, " b"],
    scale: Float[Tensor, " b"],
    shift: Float[Tensor, "b 2"],
    mirror: Float[Tensor, " b"],
    aspect: float = 1.0,
) -> Float[Tensor, "b 2 3"]:
    """The maps from output to input coordinates that `affine_grid` wants.

    The image is mirrored, then scaled and rotated about its centre, then shifted.

    Args:
        angle: radians, clockwise on the screen.
        scale: above 1 enlarges.
        shift: right and down, in normalised coordinates (2 is a whole side).
        mirror: −1 mirrors left and right, 1 does not.
        aspect: height over width.
    """
    cos, sin = angle.cos() / scale, angle.sin() / scale
    inverse = torch.stack(
        [torch.stack([cos, sin * aspect], 1), torch.stack([-sin / aspect, cos], 1)], 1
    )
    offset = -inverse @ shift[..., None]
    theta = torch.cat([inverse, offset], 2)
    return torch.stack([theta[:, 0] * mirror[:, None], theta[:, 1]], 1)


def _sampling_grid(theta: Float[Tensor, "b 2 3"], height: int, width: int) -> Tensor:
    """`F.affine_grid(theta, …, align_corners=False)` as one matrix product for the whole batch.

    affine_grid makes a product of inner size 3 per example, which costs more than the sampling.
    """
    right = (2 * torch.arange(width, device=theta.device, dtype=theta.dtype) + 1) / width - 1
    down = (2 * torch.arange(height, device=theta.device, dtype=theta.dtype) + 1) / height - 1
    pixels = torch.stack(
        [right.expand(height, width), down[:, None].expand(height, width)], 2
    ).flatten(0, 1)
    columns = theta.permute(2, 0, 1).flatten(1)  # [3, 2b]
    grid = torch.addmm(columns[2], pixels, columns[:2])
    return grid.view(height, width, len(theta), 2).permute(2, 0, 1, 3)


def colour(strength: float) -> ImageTransform:
    """Brightness, contrast and saturation of dialled strength, cut to 0…1.

    Each factor is 2^(σ·U(±1)) (our law); contrast is about the image's mean grey, saturation (three
    channels only) about each pixel's grey, as in torchvision.

    Args:
        strength: σ in [0, 1].

    Returns:
        `(x [b, c, h, w] in 0…1, generator) -> [b, c, h, w]`.

    Raises:
        ValueError: if the strength lies outside [0, 1].
    """
    _check_strength(strength)

    def transform(x: Tensor, generator: torch.Generator) -> Tensor:
        factor = torch.exp2(strength * (2 * _uniform(3, x, generator) - 1))
        brightness, contrast, saturation = factor[:, :, None, None, None]
        x = (brightness * x).clamp(0, 1)
        mean = _grey(x).mean((2, 3), keepdim=True)
        x = (mean + contrast * (x - mean)).clamp(0, 1)
        if x.shape[1] == 3:
            grey = _grey(x)
            x = (grey + saturation * (x - grey)).clamp(0, 1)
        return x

    return transform


def rand_augment(strength: float, num_ops: int = 2) -> ImageTransform:
    """RandAugment (Cubuk et al. 2020) with draws per example: `num_ops` operations in a row.

    The operations and their ranges are torchvision's; strength 1 is its largest magnitude. Examples
    that drew the same operation and sign are transformed together.

    Args:
        strength: σ in [0, 1], the share of each range.
        num_ops: operations an image.

    Returns:
        `(x [b, c, h, w] in 0…1, generator) -> [b, c, h, w]`.

    Raises:
        ValueError: if the strength lies outside [0, 1], or for fewer than one operation.
    """
    _check_strength(strength)
    if num_ops < 1:
        raise ValueError(f"num_ops must be at least 1, got {num_ops}")
    operations = list(OPERATIONS.values())

    def transform(x: Tensor, generator: torch.Generator) -> Tensor:
        x = x.clone()
        for _ in range(num_ops):
            draw = _uniform(2, x, generator)
            which = (draw[0] * len(operations)).long().clamp(max=len(operations) - 1)
            negative = draw[1] < 0.5
            for number, (apply, signed) in enumerate(operations):
                for sign in (1, -1) if signed else (1,):
                    chosen = which == number
                    chosen = chosen & (negative == (sign < 0)) if signed else chosen
                    if chosen.any():
                        x[chosen] = apply(x[chosen], sign * strength)
        return x

    return transform


def _shear(x: Tensor, degrees_x: float, degrees_y: float) -> Tensor:
    return tv.affine(
        x, 0.0, [0, 0], 1.0, [degrees_x, degrees_y], v2.InterpolationMode.BILINEAR, center=[0, 0]
    )


def _translate(x: Tensor, right: float, down: float) -> Tensor:
    # Pixels are whole in torchvision's RandAugment as well.
    return tv.affine(x, 0.0, [int(right), int(down)], 1.0, [0.0, 0.0])


SHEAR = math.degrees(math.atan(0.3))
OPERATIONS: dict[str, tuple[Callable[[Tensor, float], Tensor], bool]] = {
    # name: (operation of images and a magnitude in ±1, whether the sign is random)
    "identity": (lambda x, _: x, False),
    "shear_x": (lambda x, m: _shear(x, SHEAR * m, 0.0), True),
    "shear_y": (lambda x, m: _shear(x, 0.0, SHEAR * m), True),
    "translate_x": (lambda x, m: _translate(x, 150 / 331 * x.shape[-1] * m, 0), True),
    "translate_y": (lambda x, m: _translate(x, 0, 150 / 331 * x.shape[-2] * m), True),
    "rotate": (lambda x, m: tv.rotate(x, 30.0 * m, v2.InterpolationMode.BILINEAR), True),
    "brightness": (lambda x, m: tv.adjust_brightness(x, 1 + 0.9 * m), True),
    "color": (lambda x, m: tv.adjust_saturation(x, 1 + 0.9 * m), True),
    "contrast": (lambda x, m: tv.adjust_contrast(x, 1 + 0.9 * m), True),
    "sharpness": (lambda x, m: tv.adjust_sharpness(x, 1 + 0.9 * m), True),
    "posterize": (lambda x, m: tv.posterize(x, 8 - round(4 * m)), False),
    "solarize": (lambda x, m: tv.solarize(x, 1.0 - m), False),
    "auto_contrast": (lambda x, _: tv.autocontrast(x), False),
    "equalize": (lambda x, _: tv.equalize(x), False),
}


def trivial_augment(x: Images, generator: torch.Generator) -> Images:
    """Call torchvision's `TrivialAugmentWide` image by image, since it draws once a call.

    Müller and Hutter, "TrivialAugment" (2021): one random operation at one random strength.
    """
    bytes_ = (x * 255).round().to(torch.uint8)
    peer = v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR)
    with torch.random.fork_rng(devices=[]):  # torchvision reads the global generator
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        return torch.stack([peer(image) for image in bytes_]).to(x.dtype) / 255


# --- label-mixing -------------------------------------------------------------------------------


def mixup(
    x: Images, target: Targets, alpha: float, *, generator: torch.Generator
) -> tuple[Images, Targets]:
    """Blend each image and its target with a partner's (Zhang et al. 2018).

    Args:
        x: images.
        target: soft or one-hot targets.
        alpha: the weight of each example is Beta(alpha, alpha).
        generator: of weights and partners.

    Raises:
        ValueError: if alpha is not positive, or the batch sizes differ.
    """
    _positive_alpha(alpha)
    _same_batch(x, target)
    weight = _beta(x, alpha, generator)
    partner = _partners(x, generator)
    mixed = torch.lerp(x[partner], x, weight[:, None, None, None])
    return mixed, torch.lerp(target[partner], target, weight[:, None])


def cutmix(
    x: Images, target: Targets, alpha: float, *, generator: torch.Generator
) -> tuple[Images, Targets]:
    """Paste a box of a partner into each image; targets by the area kept (Yun et al. 2019).

    The box covers a share 1 − Beta(alpha, alpha) of the image, is centred anywhere and cut at the
    borders; targets use the area after cutting.

    Args:
        x: images.
        target: soft or one-hot targets.
        alpha: of the Beta distribution.
        generator: of boxes and partners.

    Raises:
        ValueError: if alpha is not positive, or the batch sizes differ.
    """
    _positive_alpha(alpha)
    _same_batch(x, target)
    half = (1 - _beta(x, alpha, generator)).sqrt()[:, None] / 2
    centre = _uniform(2, x, generator)
    partner = _partners(x, generator)
    inside = [
        (_pixel_centres(side, x) - middle[:, None]).abs() < half
        for side, middle in zip(x.shape[2:], centre, strict=True)
    ]
    box = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    kept = 1 - box.to(x.dtype).mean((1, 2, 3))
    pasted = torch.where(box, x[partner], x)
    return pasted, torch.lerp(target[partner], target, kept[:, None].to(target.dtype))


# --- helpers ------------------------------------------------------------------------------------


def _in_turn(first: ImageTransform, second: ImageTransform) -> ImageTransform:
    return lambda x, generator: second(first(x, generator), generator)


def _uniform(rows: int, x: Tensor, generator: torch.Generator) -> Tensor:
    """U(0, 1) of shape [rows, b], drawn where the generator lives."""
    draw = torch.rand(rows, len(x), generator=generator, device=generator.device)
    return draw.to(x.device, x.dtype)


def _beta(x: Tensor, alpha: float, generator: torch.Generator) -> Tensor:
    """Beta(alpha, alpha) of shape [b]; torch's own sampler takes no generator."""
    place = generator.device
    state = int(torch.randint(2**62, (), generator=generator, device=place))
    weight = np.random.default_rng(state).beta(alpha, alpha, len(x))
    return torch.from_numpy(weight).to(x.device, x.dtype)


def _partners(x: Tensor, generator: torch.Generator) -> Tensor:
    order = torch.randperm(len(x), generator=generator, device=generator.device)
    return order.to(x.device)


def _pixel_centres(side: int, x: Tensor) -> Tensor:
    return (torch.arange(side, device=x.device, dtype=x.dtype) + 0.5) / side


def _grey(x: Tensor) -> Tensor:
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    weights = x.new_tensor([0.2989, 0.587, 0.114])
    return (x * weights[:, None, None]).sum(1, keepdim=True)


def _check_strength(strength: float) -> None:
    if not 0 <= strength <= 1:
        raise ValueError(f"a strength lies in [0, 1], got {strength}")


def _positive_alpha(alpha: float) -> None:
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha must be positive and finite, got {alpha}")


def _same_batch(x: Tensor, target: Tensor) -> None:
    if len(x) != len(target):
        raise ValueError(f"got {len(x)} images but {len(target)} targets")
