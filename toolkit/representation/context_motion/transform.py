"""Crop, mirror and resize pictures and motion vectors together."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class View:
    """What is cut out of each video: a box in shares of the frame, and whether it is mirrored."""

    box: Float[Tensor, "n 4"]
    """Left, top, width, height."""
    mirrored: Bool[Tensor, "n"]

    def __getitem__(self, rows: Tensor) -> "View":
        return View(self.box[rows], self.mirrored[rows])


@dataclass(frozen=True)
class MotionTransform:
    """Random crops and mirrors that pictures and vectors can share.

    A mirror turns u into −u, and a crop of relative size s, enlarged to the whole, makes all
    vectors 1/s times as long. The released code does neither; `aware=False` gives its behaviour.
    """

    side: int = 40  # pixels of a side of the pictures that come out
    cells: int = 14  # of a side of the motion maps
    area: tuple[float, float] = (0.2, 1.0)  # share of the frame; paper 0.2–1
    aspect: tuple[float, float] = (3 / 4, 4 / 3)  # width : height; paper the same
    mirror: float = 0.5  # probability
    aware: bool = True  # whether vectors follow
    limit: float = 10.0  # vectors are cut to ± this and divided by it; paper 10

    def draw(self, n: int, generator: torch.Generator) -> View:
        """Random views of n videos."""
        low, high = self.area
        share = low + (high - low) * torch.rand(n, generator=generator)
        ratio = torch.tensor(self.aspect).log()
        tilt = (ratio[0] + (ratio[1] - ratio[0]) * torch.rand(n, generator=generator)).exp()
        width, height = (share * tilt).sqrt().clamp(max=1), (share / tilt).sqrt().clamp(max=1)
        corner = torch.rand(2, n, generator=generator) * (1 - torch.stack([width, height]))
        box = torch.stack([*corner, width, height], dim=1)
        return View(box, torch.rand(n, generator=generator) < self.mirror)

    @staticmethod
    def whole(n: int) -> View:
        """The frame as it is."""
        return View(torch.tensor([0.0, 0, 1, 1]).expand(n, 4), torch.zeros(n, dtype=torch.bool))

    def pictures(
        self, frames: Shaped[Tensor, "n t h w"], view: View
    ) -> Float[Tensor, "n 1 t side side"]:
        """Bytes to numbers from 0 to 1, seen through the views."""
        grid = _grid(view, self.side).to(frames.device)
        seen = F.grid_sample(frames.float() / 255, grid, padding_mode="border", align_corners=False)
        return seen[:, None]

    def vectors(
        self, mv: Float[Tensor, "n t 2 h w"], view: View
    ) -> Float[Tensor, "n 2 t cells cells"]:
        """Motion maps through the views, cut to ± `limit` and divided by it."""
        time = mv.shape[1]
        grid = _grid(view, self.cells).to(mv.device)
        seen = F.grid_sample(mv.flatten(1, 2), grid, padding_mode="border", align_corners=False)
        seen = seen.unflatten(1, (time, 2)).transpose(1, 2)
        if self.aware:
            sign = torch.where(view.mirrored, -1.0, 1.0)
            scale = torch.stack([sign / view.box[:, 2], 1 / view.box[:, 3]], dim=1)
            seen = seen * scale.to(mv.device)[:, :, None, None, None]
        return seen.clamp(-self.limit, self.limit) / self.limit


def _grid(view: View, side: int) -> Float[Tensor, "n side side 2"]:
    """Where to look, in the coordinates of `grid_sample`: -1 to 1 from border to border."""
    middles = (torch.arange(side) + 0.5) / side
    across = torch.where(view.mirrored[:, None], 1 - middles, middles)
    x = view.box[:, 0, None] + across * view.box[:, 2, None]
    y = view.box[:, 1, None] + middles * view.box[:, 3, None]
    rows = y[:, :, None].expand(-1, side, side)
    columns = x[:, None, :].expand(-1, side, side)
    return 2 * torch.stack([columns, rows], dim=-1) - 1
