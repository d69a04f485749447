"""A map of 160 settings: what words change for each class size, computed once and kept.

    python -m toolkit.search.sicot.tail_map

writes `tail_map.json` beside this file (some minutes on one core). Each setting is one draw of 100
products: an illustration, on which no verdict rests.
"""

import json
from itertools import product
from pathlib import Path

import pandas as pd

from toolkit.runtime import start, sweep
from toolkit.search.sicot.longtail import SIZES
from toolkit.search.sicot.recipe import Recipe
from toolkit.search.sicot.study import run_small

PLACE = Path(__file__).with_name("tail_map.json")
N_MAX = (10, 20, 60, 200)
"""Images of the largest class; the smallest has two: imbalance 5, 10, 30, 100."""
NOISE = (5, 10, 20, 40)
"""Sellers' words in a title."""
SAMPLERS = {"instance": "", "class": "+class"}
"""What each does to the name of an arm."""
COUPLINGS = {
    "none": "sicot",
    "kl": "kl",
    "l2": "l2",
    "separate": "separate",
    "shuffled": "shuffled",
}
"""How the branches are tied; `shuffled` is `none` with word bags handed to other images."""
SEED = 0


def map_recipes() -> list[Recipe]:
    """The runs behind the map: one for each imbalance and each number of noise words."""
    arms = tuple(
        arm + suffix for suffix in SAMPLERS.values() for arm in ("ce", *COUPLINGS.values())
    )
    return [
        Recipe(arms=arms, products=100, n_max=n_max, noise_words=noise, length=64, steps=250)
        for n_max, noise in product(N_MAX, NOISE)
    ]


def read_map() -> dict[str, list[float | None]]:
    """Accuracies in percent by class size (see `SIZES`; None where no class has that size).

    Keys are `"N_MAX/NOISE/COUPLING/SAMPLER"`; visual-only training is the coupling `ce`.
    """
    return json.loads(PLACE.read_text("utf-8"))


def make_map() -> dict[str, list[float | None]]:
    """Train every setting (finished ones are remembered by `sweep`)."""
    rows = sweep(run_small, map_recipes(), [SEED])
    found = {}
    for (n_max, noise), (_, row) in zip(product(N_MAX, NOISE), rows.iterrows(), strict=True):
        for (sampler, suffix), (name, arm) in product(
            SAMPLERS.items(), {"ce": "ce", **COUPLINGS}.items()
        ):
            values = [row[f"{arm}{suffix}/size@{size}"] for size in SIZES]
            found[f"{n_max}/{noise}/{name}/{sampler}"] = [
                None if pd.isna(value) else round(100 * value, 1) for value in values
            ]
    return found


def main() -> None:
    """Write the map; the file appears whole."""
    start()
    temporary = PLACE.with_suffix(".tmp")
    temporary.write_text(json.dumps(make_map(), indent=0) + "\n", "utf-8")
    temporary.replace(PLACE)


if __name__ == "__main__":
    main()
