"""A case where the augmentation points towards the target: from catalogue images to photographs."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from toolkit.data import load_emoji_shop
from toolkit.supervision.wemix.method import PRESETS
from toolkit.supervision.wemix.recipe import Recipe
from toolkit.supervision.wemix.training import Task, run_arms


@dataclass(frozen=True)
class ShopRecipe(Recipe):
    """Name the product: learnt from the catalogue's clean drawings, tested on photographs as well.

    A class is a product, the first 100 of the shop: their drawings by five vendors are 500 images,
    as many as in the main experiment. (A category would hold drawings that share no shape.)
    """

    arms: tuple[str, ...] = PRESETS
    seeds: int = 8
    augmentation: str = "affine_colour"  # as a camera moves and tints
    flip: bool = False  # hands and arrows have a side
    products: int = 100  # classes
    side: int = 32  # pixels
    draws: int = 0


def shop_study() -> list[ShopRecipe]:
    """The study `shop`, of the full profile: σ = 0.35, five methods, eight seeds."""
    return [ShopRecipe()]


def run_shop(recipe: ShopRecipe, seed: int, device: torch.device) -> dict[str, float]:
    """Train every arm on catalogue images of all vendors but one.

    Returns:
        For each arm `error_catalogue` (drawings of the vendor left out; the seed chooses it),
        `error_photo` (photographs of a vendor that the catalogue never shows), `error_seen`
        (photographs of drawings that were learnt), and the metrics of `run_small`.

    Raises:
        ValueError: if the recipe cannot be run.
        DataMissing: if the shop is not prepared.
    """
    task = shop_task(recipe, seed, device)
    replace(recipe, images=len(task.x)).check()
    return run_arms(recipe, task, seed)


def shop_task(recipe: ShopRecipe, seed: int, device: torch.device) -> Task:
    """Catalogue images to learn from, and three test sets, as ink on nothing.

    Raises:
        ValueError: if the shop has fewer products than classes are asked for.
        DataMissing: if the shop is not prepared.
    """
    if recipe.products < 2:
        raise ValueError(f"products must be 2 or more, got {recipe.products}")
    shop = load_emoji_shop(recipe.products)
    seen, new = shop.queries["train"], shop.queries["test"]
    vendors = shop.vendor.unique()
    left_out = vendors[seed % len(vendors)]

    def part(images: Tensor, product: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        return ink(images[keep], recipe.side).to(device), product[keep].to(device)

    x, label = part(shop.catalogue, shop.product, shop.vendor != left_out)
    tests = {
        "error_photo": part(new.crop, new.product, new.product >= 0),
        "error_catalogue": part(shop.catalogue, shop.product, shop.vendor == left_out),
        "error_seen": part(seen.crop, seen.product, seen.vendor != left_out),
    }
    return Task(x, label, recipe.products, tests)


def ink(images: UInt8[Tensor, "n 3 h w"], side: int) -> Float[Tensor, "n 3 side side"]:
    """White becomes 0, so that what an affine map brings in from outside is background."""
    x = 1 - images.float() / 255
    return F.interpolate(x, (side, side), mode="bilinear", antialias=True).clamp(0, 1)
