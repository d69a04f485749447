"""A box that learns from ranking: a soft mask, whose edges pass gradients (method B.4).

The detection branch gives four coordinates; a mask multiplies the image; the feature branch reads
what is left. The step function of a crop is replaced by a sigmoid, so that the triplet loss tells
the four edges where to go. Nobody ever draws a box.
"""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_iou

LEAST_SIDE = 0.1
"""The least width and height of a box, as a share of the frame; below it there is no way back."""


class SoftBox(nn.Module):
    """M(x, y) = [h(x − x_l) − h(x − x_r)] · [h(y − y_t) − h(y − y_b)], h(t) = 1 / (1 + e^(−kt)).

    What the mask takes away is filled with the image's mean colour: black would be a pattern.

    Args:
        k: steepness, 1 / frame. An edge rises from 10 to 90 % over 2 ln 9 / k ≈ 4.4 / k.

    Raises:
        ValueError: if k is not positive.
    """

    def __init__(self, k: float = 20.0) -> None:
        super().__init__()
        if not k > 0:
            raise ValueError(f"k must be positive, got {k}")
        self.k = k

    def forward(
        self, images: Float[Tensor, "b 3 h w"], box: Float[Tensor, "b 4"]
    ) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b 1 h w"]]:
        """Return the masked images and the masks.

        Args:
            images: any range.
            box: (x_l, x_r, y_t, y_b) as shares of the frame.
        """
        height, width = images.shape[2:]
        across = self._window(width, box[:, 0], box[:, 1])
        down = self._window(height, box[:, 2], box[:, 3])
        mask = (down[:, :, None] * across[:, None, :])[:, None]
        colour = images.mean((2, 3), keepdim=True)
        return colour + mask * (images - colour), mask

    def _window(
        self, size: int, low: Float[Tensor, " b"], high: Float[Tensor, " b"]
    ) -> Float[Tensor, "b size"]:
        centre = (torch.arange(size, device=low.device, dtype=low.dtype) + 0.5) / size
        rise = torch.sigmoid(self.k * (centre - low[:, None]))
        return rise - torch.sigmoid(self.k * (centre - high[:, None]))


def ordered_box(raw: Float[Tensor, "b 4"]) -> Float[Tensor, "b 4"]:
    """Four free numbers (a, b for x, then for y) as a box (x_l, x_r, y_t, y_b) inside the frame.

    w = .1 + .9 σ(b), x_l = σ(a) (1 − w), x_r = x_l + w, likewise in y. [ours: the paper's form is
    not known]
    """
    start, extent = raw[:, 0::2].sigmoid(), LEAST_SIDE + (1 - LEAST_SIDE) * raw[:, 1::2].sigmoid()
    low = start * (1 - extent)
    return torch.stack([low, low + extent], 2).flatten(1)


class JointSearchNet(nn.Module):
    """One set of weights for photographs and listings: box, mask, unit-length feature.

    Args:
        trunk: masked images to features [batch, d].
        box_branch: images of `box_size` to four numbers; its last layer starts at zero, so that
            every box starts centred and 89 % wide. Without one the whole image is read.
        box_size: side of what the box branch sees, in pixels.
        k: steepness of the mask.

    Raises:
        ValueError: if the box branch does not end in a linear layer with four outputs.
    """

    def __init__(
        self,
        trunk: nn.Module,
        box_branch: nn.Sequential | None,
        *,
        box_size: int = 24,
        k: float = 20.0,
    ) -> None:
        super().__init__()
        self.trunk, self.box_branch, self.box_size = trunk, box_branch, box_size
        self.mask = SoftBox(k)
        if box_branch is not None:
            last = box_branch[-1]
            if not isinstance(last, nn.Linear) or last.out_features != 4:
                raise ValueError("box_branch must end in a linear layer with four outputs")
            nn.init.zeros_(last.weight)
            with torch.no_grad():
                last.bias.copy_(torch.tensor([0.0, 2.0, 0.0, 2.0]))

    def forward(
        self, images: Float[Tensor, "b 3 h w"], box: Float[Tensor, "b 4"] | None = None
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b 4"]]:
        """Return unit-length features and the boxes (x_l, x_r, y_t, y_b).

        Args:
            images: about zero mean.
            box: given boxes in the place of the branch's; a row of NaN reads the whole image.
        """
        if box is None:
            box = self.boxes(images)
        whole = box.isnan().any(1)
        masked, _ = self.mask(images, torch.where(whole[:, None], 0.5, box))
        masked = torch.where(whole[:, None, None, None], images, masked)
        frame = box.new_tensor([0.0, 1.0, 0.0, 1.0])
        return F.normalize(self.trunk(masked)), torch.where(whole[:, None], frame, box)

    def boxes(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 4"]:
        """What the detection branch sees; NaN without one."""
        if self.box_branch is None:
            return images.new_full((len(images), 4), torch.nan)
        small = F.interpolate(images, size=self.box_size, mode="area")
        return ordered_box(self.box_branch(small))


def to_edges(box: Float[Tensor, "b 4"], side: float = 1.0) -> Float[Tensor, "b 4"]:
    """(x₀, y₀, x₁, y₁) in units of `side` to (x_l, x_r, y_t, y_b) as shares of the frame."""
    return box[:, [0, 2, 1, 3]] / side


def to_corners(box: Float[Tensor, "b 4"], side: float = 1.0) -> Float[Tensor, "b 4"]:
    """(x_l, x_r, y_t, y_b) as shares of the frame to (x₀, y₀, x₁, y₁) in units of `side`."""
    return box[:, [0, 2, 1, 3]] * side


def paired_iou(a: Float[Tensor, "b 4"], b: Float[Tensor, "b 4"]) -> Float[Tensor, " b"]:
    """Intersection over union of each pair of boxes (x_l, x_r, y_t, y_b)."""
    return box_iou(to_corners(a), to_corners(b)).diagonal()


def mean_area(box: Float[Tensor, "b 4"]) -> Float[Tensor, ""]:
    """The mean of w · h: the optional term that keeps boxes from growing over everything."""
    return ((box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2])).mean()


def saliency_box(
    images: Shaped[Tensor, "b 3 h w"], share: float = 0.5, border: int = 3
) -> Float[Tensor, "b 4"]:
    """A box without learning: around the pixels least like the frame's border.

    Args:
        images: any range.
        share: of the largest distance from the border's median colour that counts as object.
        border: width of the border, in pixels.

    Returns:
        (x_l, x_r, y_t, y_b); edges at the 2 % and 98 % quantiles of the object's pixels.
    """
    images = images.float()
    height, width = images.shape[2:]
    rim = torch.ones(height, width, dtype=torch.bool)
    rim[border:-border, border:-border] = False
    ground = images[:, :, rim].median(2).values[:, :, None, None]
    distance = (images - ground).square().sum(1).sqrt()
    hit = (distance > share * distance.amax((1, 2), keepdim=True)).float()
    return torch.cat([_extent(hit.sum(1)), _extent(hit.sum(2))], 1)


def _extent(mass: Float[Tensor, "b size"]) -> Float[Tensor, "b 2"]:
    """From where to where the middle 96 % of the mass lie, as shares of the size."""
    total = mass.cumsum(1) / mass.sum(1, keepdim=True).clamp(min=1e-9)
    low, high = (total < 0.02).sum(1), (total < 0.98).sum(1) + 1
    return torch.stack([low, high.clamp(max=mass.shape[1])], 1) / mass.shape[1]
