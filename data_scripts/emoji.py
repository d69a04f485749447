"""Emoji: one concept as up to eight vendors draw it, matched by code point or by name.

Four icon sets say which code points their icons show; the other four only name them. Names are
looked up in one dictionary, name → concept, made from the labels of the concepts and from the names
in the sets that have code points.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_scripts.archives import read_json
from data_scripts.jobs import in_parallel
from data_scripts.tables import write_licences, write_table
from toolkit.data import EMOJI_VENDORS
from toolkit.data.store import DataError

SIDE = 64
"""Pixels of a raster."""

PACKAGES = {
    vendor: f"@iconify-json/{'fluent-emoji-flat' if vendor == 'fluent-flat' else vendor}"
    for vendor in EMOJI_VENDORS
}
NAMED_AFTER = ("twemoji", "noto", "openmoji", "fluent-flat")
"""The sets with code points, in the order in which their names enter the dictionary."""

COUNTS = {
    "noto": 1678,
    "noto-v1": 1259,
    "twemoji": 1940,
    "openmoji": 1940,
    "fluent-flat": 1594,
    "emojione": 1248,
    "emojione-v1": 1044,
    "fxemoji": 496,
}
"""Concepts that each vendor draws, in the pinned versions."""
DRAWN_CONCEPTS = 1945
"""Concepts that at least one vendor draws."""


@dataclass(frozen=True)
class IconSet:
    """One vendor's icons: SVG bodies by name, other names for them, and code points if known."""

    icons: Mapping[str, Mapping[str, Any]]
    aliases: Mapping[str, Mapping[str, Any]]
    chars: Mapping[str, str]
    """Code points → icon name; empty for four of the sets."""
    defaults: Mapping[str, float]
    """The box of an icon that does not say its own."""

    def names(self) -> Iterator[str]:
        """The names of all icons, then the aliases that neither turn nor mirror one."""
        yield from self.icons
        yield from (name for name, alias in self.aliases.items() if set(alias) == {"parent"})

    def icon(self, name: str) -> Mapping[str, Any]:
        """The icon of a name or of an alias."""
        return self.icons[name] if name in self.icons else self.icon(self.aliases[name]["parent"])


def prepare(folder: Path, inputs: Mapping[str, Path], size: str = "") -> None:
    """Write the rasters, the concepts, the index of both and the licences.

    Raises:
        DataError: if the matches are not those of the pinned versions.
    """
    concepts = read_concepts(inputs["emojibase-data"])
    messages = read_json(inputs["emojibase-data"], "en/messages.json")
    sets = {vendor: read_icons(inputs[PACKAGES[vendor]]) for vendor in EMOJI_VENDORS}
    matches = match(concepts, sets)
    drawn = [key for key in concepts if any(key in found for found in matches.values())]
    _check_counts(matches, drawn)
    index = [(key, vendor) for key in drawn for vendor in EMOJI_VENDORS if key in matches[vendor]]
    svgs = [svg(sets[vendor], matches[vendor][key], SIDE) for key, vendor in index]
    np.save(folder / "images.npy", raster_all(svgs))
    numbered = [(row, key, vendor) for row, (key, vendor) in enumerate(index)]
    write_table(folder / "index.csv", ["row", "concept", "vendor"], numbered)
    columns = ["key", "label", "group", "subgroup", "order", "tags"]
    rows = _rows({key: concepts[key] for key in drawn}, messages)
    write_table(folder / "concepts.csv", columns, rows)
    write_licences(folder, "vendor", PACKAGES)


def read_concepts(archive: Path) -> dict[str, dict[str, Any]]:
    """The concepts of emojibase in its order, by key: no skin tones, no variation selectors."""
    rows = read_json(archive, "en/data.json")
    concepts = {key_of(row["hexcode"]): row for row in rows}
    if len(concepts) != len(rows):
        raise DataError("two concepts of emojibase have the same code points")
    return concepts


def read_icons(archive: Path) -> IconSet:
    """The icon set of a package."""
    content = read_json(archive, "icons.json")
    chars = read_json(archive, "chars.json")
    defaults = {"left": 0, "top": 0, "width": 16, "height": 16}
    defaults |= {field: content[field] for field in defaults if field in content}
    return IconSet(content["icons"], content.get("aliases", {}), chars, defaults)


def match(
    concepts: Mapping[str, Mapping[str, Any]], sets: Mapping[str, IconSet]
) -> dict[str, dict[str, str]]:
    """Which icon of which vendor shows a concept: vendor → key → icon name, first one wins."""
    dictionary = name_dictionary(concepts, sets)
    squeezed: dict[str, set[str]] = {}
    for name, key in dictionary.items():
        squeezed.setdefault(name.replace("-", ""), set()).add(key)
    found: dict[str, dict[str, str]] = {}
    for vendor, icons in sets.items():
        found[vendor] = {}
        pairs = _by_code(icons, concepts) if icons.chars else _by_name(icons, dictionary, squeezed)
        for key, name in pairs:
            found[vendor].setdefault(key, name)
    return found


def name_dictionary(
    concepts: Mapping[str, Mapping[str, Any]], sets: Mapping[str, IconSet]
) -> dict[str, str]:
    """Name → key: slugs of labels, then names of icons and aliases; first entry wins."""
    dictionary: dict[str, str] = {}
    for key, row in concepts.items():
        dictionary.setdefault(slug(row["label"]), key)
    for vendor in NAMED_AFTER:
        icons = sets[vendor]
        keys: dict[str, str] = {}
        for code, name in icons.chars.items():
            keys.setdefault(name, key_of(code))
        for name in icons.names():
            own = keys.get(name) or keys.get(_parent(icons, name), "")
            if own in concepts:
                dictionary.setdefault(name, own)
    return dictionary


def key_of(hexcode: str) -> str:
    """Code points in upper case, no variation selector: `1f3f3-fe0f-200d` → `1F3F3-200D`."""
    return "-".join(part for part in hexcode.upper().split("-") if part != "FE0F")


def slug(label: str) -> str:
    """Lower case, with a hyphen for every run of other characters than letters and digits."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")


def svg(icons: IconSet, name: str, side: int) -> str:
    """An icon as an SVG document of `side` × `side` pixels; one that is not square is centred."""
    icon = icons.icon(name)
    box = " ".join(str(icon.get(field, default)) for field, default in icons.defaults.items())
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{side}" height="{side}" viewBox="{box}">{icon["body"]}</svg>'
    )


def raster_all(svgs: Sequence[str]) -> np.ndarray:
    """Draw documents of 64×64 pixels: uint8 [n, 64, 64, 4], straight alpha."""
    pieces = [svgs[start : start + 200] for start in range(0, len(svgs), 200)]
    return np.concatenate(in_parallel(raster, [(piece,) for piece in pieces], "emoji: rasters"))


def raster(svgs: Sequence[str]) -> np.ndarray:
    """Draw documents of one size: uint8 [n, side, side, 4], straight alpha."""
    import resvg_py

    pictures = [resvg_py.svg_to_bytes(svg_string=text, skip_system_fonts=True) for text in svgs]
    return np.stack([np.asarray(Image.open(io.BytesIO(one)).convert("RGBA")) for one in pictures])


def _by_code(icons: IconSet, concepts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for code, name in icons.chars.items():
        if (key := key_of(code)) in concepts:
            yield key, name


def _by_name(
    icons: IconSet, dictionary: Mapping[str, str], squeezed: Mapping[str, set[str]]
) -> Iterator[tuple[str, str]]:
    for name in icons.names():
        candidates = squeezed.get(name.replace("-", ""), set())
        if name in dictionary:
            yield dictionary[name], name
        elif len(candidates) == 1:
            yield next(iter(candidates)), name


def _check_counts(matches: Mapping[str, Mapping[str, str]], drawn: Sequence[str]) -> None:
    counts = {vendor: len(found) for vendor, found in matches.items()}
    if counts != COUNTS or len(drawn) != DRAWN_CONCEPTS:
        raise DataError(
            f"matched {counts}, {len(drawn)} concepts; expected {COUNTS}, {DRAWN_CONCEPTS} concepts"
        )


def _rows(
    concepts: Mapping[str, Mapping[str, Any]], messages: Mapping[str, Any]
) -> Iterator[tuple[Any, ...]]:
    """The table of concepts; groups and sub-groups by their names."""
    groups, subgroups = (
        {row["order"]: row["key"] for row in messages[kind]} for kind in ("groups", "subgroups")
    )
    for key, row in concepts.items():
        group, subgroup = groups.get(row.get("group"), ""), subgroups.get(row.get("subgroup"), "")
        yield (
            key,
            row["label"],
            group,
            subgroup,
            row.get("order", ""),
            "|".join(row.get("tags", ())),
        )


def _parent(icons: IconSet, name: str) -> str:
    return icons.aliases.get(name, {}).get("parent", "")
