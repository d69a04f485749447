"""Colour jitter for batches of clips, anew in every frame (as released) or once a clip."""

import torch
from jaxtyping import Float
from torch import Tensor

GREY = (0.299, 0.587, 0.114)


def jitter_colours(
    clips: Float[Tensor, "n 3 t h w"],
    generator: torch.Generator,
    strength: float = 0.5,
    hue: float = 0.25,
    grey: float = 0.3,
    consistent: bool = False,
) -> Float[Tensor, "n 3 t h w"]:
    """Change brightness, contrast, saturation and hue, in this order; turn some clips grey.

    The released generator draws anew in every frame. With a mask laid afterwards only the moving
    rectangle then flickers, in the class at rest, too: a way to find it without any motion.

    Args:
        clips: colours from 0 to 1.
        generator: on the CPU.
        strength: factors of brightness, contrast and saturation are U(1 − s, 1 + s).
        hue: shift of the hue in turns, U(−h, h).
        grey: probability that a whole clip loses its colours.
        consistent: one draw a clip instead of one a frame.

    Raises:
        ValueError: for a strength or probability outside [0, 1] or a hue outside [0, ½].
    """
    if not (0 <= strength <= 1 and 0 <= grey <= 1 and 0 <= hue <= 0.5):
        raise ValueError(f"need strength, grey in [0, 1], hue in [0, ½]: {strength}, {grey}, {hue}")
    n, frames = len(clips), 1 if consistent else clips.shape[2]
    draw = (2 * torch.rand(4, n, 1, frames, 1, 1, generator=generator) - 1).to(clips.device)
    bright, contrast, saturation = 1 + strength * draw[:3]
    x = (clips * bright).clamp(0, 1)
    x = _blend(x, luma(x).mean(dim=(3, 4), keepdim=True), contrast)
    x = _blend(x, luma(x), saturation)
    x = shift_hue(x, hue * draw[3]) if hue else x
    colourless = (torch.rand(n, generator=generator) < grey).to(clips.device)
    return torch.where(colourless[:, None, None, None, None], luma(x), x)


def luma(clips: Float[Tensor, "n 3 t h w"]) -> Float[Tensor, "n 1 t h w"]:
    """Brightness as television has it."""
    return torch.einsum("ncthw,c->nthw", clips, clips.new_tensor(GREY))[:, None]


def shift_hue(
    clips: Float[Tensor, "n 3 t h w"], turns: Float[Tensor, "n 1 #t 1 1"]
) -> Float[Tensor, "n 3 t h w"]:
    """Turn the hue; value and saturation stay. Each channel is a trapezium over the hue."""
    top, low = clips.amax(dim=1, keepdim=True), clips.amin(dim=1, keepdim=True)
    chroma = top - low
    red, green, blue = ((top - clips) / chroma.clamp(min=1e-8)).split(1, dim=1)
    sixth = torch.where(
        clips[:, :1] == top,
        blue - green,
        torch.where(clips[:, 1:2] == top, 2 + red - blue, 4 + green - red),
    )
    hue = sixth / 6 + turns
    corner = clips.new_tensor([5.0, 3.0, 1.0]).view(1, 3, 1, 1, 1)
    k = (corner + 6 * hue) % 6
    return top - chroma * torch.minimum(k, 4 - k).clamp(0, 1)


def _blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return (factor * x + (1 - factor) * other).clamp(0, 1)
