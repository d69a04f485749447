"""Prepared data sets as plain tensors, subsets of them, label noise, a shop with its visitors.

`load_NAME()` returns a frozen dataclass of tensors. Where a set is missing it raises
`DataMissing`, whose message names the command that prepares it.
"""

from toolkit.data.clips import RealClip, load_clips
from toolkit.data.emoji_scenes import (
    SCENE_CLASSES,
    SCENE_VENDORS,
    Scenes,
    load_emoji_scenes,
)
from toolkit.data.emoji_shop import (
    CATALOGUE_VENDORS,
    SHOP_VENDORS,
    EmojiShop,
    ShopQueries,
    load_emoji_shop,
)
from toolkit.data.emoji_video import (
    EASY_MOTIONS,
    HARD_MOTIONS,
    TWIN_SETS,
    VIDEO_SIZES,
    Clips,
    load_emoji_video,
)
from toolkit.data.images import (
    EMOJI_VENDORS,
    GLYPH_FONTS,
    HELD_OUT_FONTS,
    Emoji,
    Glyphs,
    LabelledImages,
    Photos,
    load_digits,
    load_emoji,
    load_fashion_mnist,
    load_glyphs,
    load_photos,
)
from toolkit.data.noise import (
    NoisyLabels,
    instance_noise,
    matrix_noise,
    pair_noise,
    symmetric_noise,
)
from toolkit.data.shop_clicks import ClickLog, old_engine, simulate_clicks
from toolkit.data.shop_titles import SELLER_WORDS, draw_title, shared_only
from toolkit.data.store import ChecksumError, DataError, DataMissing, StoreError
from toolkit.data.subsets import long_tail_counts, take_per_class
from toolkit.data.video import CompressedClip, decode, encode_h264, read_compressed

__all__ = [
    "CATALOGUE_VENDORS",
    "EASY_MOTIONS",
    "EMOJI_VENDORS",
    "GLYPH_FONTS",
    "HARD_MOTIONS",
    "HELD_OUT_FONTS",
    "SCENE_CLASSES",
    "SCENE_VENDORS",
    "SELLER_WORDS",
    "SHOP_VENDORS",
    "TWIN_SETS",
    "VIDEO_SIZES",
    "ChecksumError",
    "ClickLog",
    "Clips",
    "CompressedClip",
    "DataError",
    "DataMissing",
    "Emoji",
    "EmojiShop",
    "Glyphs",
    "LabelledImages",
    "NoisyLabels",
    "Photos",
    "RealClip",
    "Scenes",
    "ShopQueries",
    "StoreError",
    "decode",
    "draw_title",
    "encode_h264",
    "instance_noise",
    "load_clips",
    "load_digits",
    "load_emoji",
    "load_emoji_scenes",
    "load_emoji_shop",
    "load_emoji_video",
    "load_fashion_mnist",
    "load_glyphs",
    "load_photos",
    "long_tail_counts",
    "matrix_noise",
    "old_engine",
    "pair_noise",
    "read_compressed",
    "shared_only",
    "simulate_clicks",
    "symmetric_noise",
    "take_per_class",
]
