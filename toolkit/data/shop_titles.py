"""Sellers' titles in the emoji shop: true words, a wrong one now and then, and advertising."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

_SELLER_WORDS = (
    "free hot new 2020 sale best gift cute style fashion original official shipping deal price "
    "quality brand store top cheap mini large set pcs pack home kids summer winter luxury "
    "classic vintage premium limited popular fast global trend bonus extra"
)
SELLER_WORDS = tuple(f"{word}!" for word in _SELLER_WORDS.split())
"""What sellers add to any title, most frequent first; no product has such a word."""


def draw_title(
    tokens: Sequence[Sequence[str]],
    p: int,
    rng: np.random.Generator,
    keep: float = 0.85,
    swap: float = 0.15,
    noise: int = 5,
    max_len: int = 16,
) -> list[str]:
    """Write a seller's title for a product: most of its words, perhaps a wrong one, and noise.

    Args:
        tokens: the words of every product, as `EmojiShop.tokens` has them.
        p: the product.
        rng: its state decides.
        keep: probability of each of the product's words; at least one stays.
        swap: probability that one of them is replaced by a word of another product.
        noise: how many of `SELLER_WORDS` are added, the k-th with probability ∝ 1/k.
        max_len: where the shuffled title is cut.

    Returns:
        The words. A product without words (see `shared_only`) has seller words only.

    Raises:
        ValueError: for a probability outside 0 to 1, or a negative number of words.
    """
    if not (0 <= keep <= 1 and 0 <= swap <= 1 and noise >= 0 and max_len >= 1):
        raise ValueError(
            "keep and swap must be from 0 to 1, noise ≥ 0, max_len ≥ 1; "
            f"got {keep}, {swap}, {noise}, {max_len}"
        )
    words = [word for word in tokens[p] if rng.random() < keep]
    if tokens[p] and not words:
        words = [tokens[p][int(rng.integers(len(tokens[p])))]]
    if rng.random() < swap and words:
        words[int(rng.integers(len(words)))] = _foreign_word(tokens, p, rng)
    weights = 1 / np.arange(1, len(SELLER_WORDS) + 1)
    added = rng.choice(len(SELLER_WORDS), noise, p=weights / weights.sum())
    words += [SELLER_WORDS[number] for number in added]
    return [words[place] for place in rng.permutation(len(words))][:max_len]


def shared_only(tokens: Sequence[Sequence[str]]) -> list[list[str]]:
    """Leave out the words that name a single product, which would give it away."""
    products = Counter(word for words in tokens for word in set(words))
    return [[word for word in words if products[word] > 1] for words in tokens]


def _foreign_word(tokens: Sequence[Sequence[str]], p: int, rng: np.random.Generator) -> str:
    others = [product for product, words in enumerate(tokens) if words and product != p]
    if not others:
        raise ValueError("no other product has a word to swap in")
    words = tokens[others[int(rng.integers(len(others)))]]
    return words[int(rng.integers(len(words)))]
