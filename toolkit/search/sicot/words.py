"""The words of a title: numbers for them, attention over them, one embedding of the whole bag."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn

PAD, UNKNOWN = 0, 1
"""Reserved numbers: no word, and a word that the vocabulary lacks. Attention sees neither."""


@dataclass(frozen=True)
class Vocabulary:
    """Words with numbers from 2 on; 0 pads, 1 stands for an unknown word."""

    words: tuple[str, ...]
    """The most frequent first; word i has the number i + 2."""

    @classmethod
    def fit(
        cls, texts: Sequence[Sequence[str]], min_count: int = 1, max_size: int | None = None
    ) -> "Vocabulary":
        """Count the words of training titles; frequent ones come first, equals by alphabet.

        Args:
            texts: titles, each a list of words. Never those of test images.
            min_count: rarer words stay unknown.
            max_size: keep so many words at most; None keeps all.

        Raises:
            ValueError: for `min_count` or `max_size` below 1, or if no word is left.
        """
        if min_count < 1 or (max_size is not None and max_size < 1):
            raise ValueError(f"need min_count ≥ 1 and max_size ≥ 1, got {min_count}, {max_size}")
        counts = Counter(word for text in texts for word in text)
        known = [(-count, word) for word, count in counts.items() if count >= min_count]
        if not known:
            raise ValueError(f"no word occurs {min_count} times in {len(texts)} texts")
        return cls(tuple(word for _, word in sorted(known)[:max_size]))

    def __len__(self) -> int:
        """Numbers in use: the words and the two reserved ones."""
        return len(self.words) + 2

    def encode(
        self, texts: Sequence[Sequence[str]], length: int = 16
    ) -> tuple[Int64[Tensor, "n length"], Bool[Tensor, "n length"]]:
        """Turn titles into rows of numbers, cut or padded to one length.

        Args:
            texts: titles, each a list of words.
            length: T.

        Returns:
            The numbers, and a mask that is True at known words.

        Raises:
            ValueError: for a length below 1.
        """
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        number = {word: index for index, word in enumerate(self.words, UNKNOWN + 1)}
        tokens = torch.zeros(len(texts), length, dtype=torch.int64)
        for row, text in enumerate(texts):
            codes = [number.get(word, UNKNOWN) for word in text[:length]]
            tokens[row, : len(codes)] = torch.tensor(codes, dtype=torch.int64)
        return tokens, tokens > UNKNOWN


class BilinearWordAttention(nn.Module):
    """Which words of a bag matter, given a context: softmax over eᵢᵀ Qᵀ U g / (√k · temperature).

    Zhou, Pan, Zheng, Xu and Jin (2020) name a bilinear attention over words; this low-rank form of
    it, B = QᵀU, is a reconstruction. A bag without a known word gets a learnt vector instead.
    """

    def __init__(
        self, d_word: int, d_context: int, rank: int = 32, temperature: float = 1.0
    ) -> None:
        """Draw Q [rank, d_word] and U [rank, d_context]; the vector for empty bags starts at 0.

        Args:
            d_word: width of a word's embedding.
            d_context: width of the context.
            rank: k, of the bilinear form.
            temperature: above 1 spreads the weights.

        Raises:
            ValueError: for a width or rank below 1, or a temperature that is not positive.
        """
        super().__init__()
        if min(d_word, d_context, rank) < 1 or not temperature > 0:
            raise ValueError(
                "widths and rank must be at least 1 and the temperature positive, got "
                f"{d_word}, {d_context}, {rank}, {temperature}"
            )
        self.query = nn.Linear(d_word, rank, bias=False)
        self.context = nn.Linear(d_context, rank, bias=False)
        self.empty = nn.Parameter(torch.zeros(d_word))
        self.temperature = temperature

    def forward(
        self,
        words: Float[Tensor, "batch length d_word"],
        context: Float[Tensor, "batch d_context"],
        mask: Bool[Tensor, "_ _"],
    ) -> tuple[Float[Tensor, "batch d_word"], Float[Tensor, "batch length"]]:
        """Weigh the words and add them up.

        Args:
            words: embeddings eᵢ.
            context: g, one for each bag.
            mask: True at words that count.

        Returns:
            Σ aᵢ eᵢ, and the weights aᵢ: 0 where masked, of sum 1 unless all is masked.

        Raises:
            ValueError: if the mask has another shape than the words.
        """
        check_mask(mask, words)
        # (QᵀUg) once a bag, instead of Q eᵢ once a word.
        direction = self.context(context) @ self.query.weight
        scores = (words @ direction[:, :, None])[:, :, 0]
        scores = scores / (math.sqrt(self.query.out_features) * self.temperature)
        lowest = torch.finfo(scores.dtype).min  # −∞ would make NaN of a bag without words
        weights = scores.masked_fill(~mask, lowest).softmax(dim=1) * mask
        return pooled(words, weights, mask, self.empty), weights


class MeanPooling(nn.Module):
    """The baseline: every known word has the same weight."""

    def __init__(self, d_word: int) -> None:
        """The vector for bags without a known word starts at 0.

        Args:
            d_word: width of a word's embedding.
        """
        super().__init__()
        self.empty = nn.Parameter(torch.zeros(d_word))

    def forward(
        self,
        words: Float[Tensor, "batch length d_word"],
        context: Float[Tensor, "batch d_context"],
        mask: Bool[Tensor, "_ _"],
    ) -> tuple[Float[Tensor, "batch d_word"], Float[Tensor, "batch length"]]:
        """The mean of the known words, and their weights; the context is not looked at.

        Raises:
            ValueError: if the mask has another shape than the words.
        """
        check_mask(mask, words)
        weights = even_weights(mask, words.dtype)
        return pooled(words, weights, mask, self.empty), weights


class WordEncoder(nn.Module):
    """The semantic embedding s = A Σ aᵢ eᵢ + a₀ of a bag of words."""

    def __init__(
        self,
        vocabulary: Vocabulary | int,
        d_word: int,
        d_out: int,
        attention: nn.Module,
        word_context: bool = False,
    ) -> None:
        """Draw the embeddings E and the map A.

        Args:
            vocabulary: or how many numbers it has.
            d_word: width of a word's embedding.
            d_out: d, width of the semantic embedding, that of the visual feature.
            attention: `BilinearWordAttention` or `MeanPooling`.
            word_context: steer the attention by the mean of the words, through a learnt map to
                the attention's width, and not by what the caller hands over.
        """
        super().__init__()
        self.size = vocabulary if isinstance(vocabulary, int) else len(vocabulary)
        self.embedding = nn.Embedding(self.size, d_word, padding_idx=PAD)
        self.attention = attention
        self.out = nn.Linear(d_word, d_out)
        self.mean_context = nn.Linear(d_word, d_out, bias=False) if word_context else None

    def forward(
        self,
        tokens: Int[Tensor, "batch length"],
        mask: Bool[Tensor, "_ _"],
        context: Float[Tensor, "batch d"],
    ) -> tuple[Float[Tensor, "batch d"], Float[Tensor, "batch length"]]:
        """Embed each bag.

        Args:
            tokens: numbers of a `Vocabulary`.
            mask: True at known words.
            context: what steers the attention.

        Returns:
            s, and the weights of the words.

        Raises:
            ValueError: for a number that the vocabulary lacks, or a mask of another shape.
        """
        if mask.shape != tokens.shape:
            raise ValueError(f"the mask is {tuple(mask.shape)}, the tokens {tuple(tokens.shape)}")
        if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.size:
            raise ValueError(
                f"tokens must lie in 0…{self.size - 1}, got {int(tokens.min())} to "
                f"{int(tokens.max())}"
            )
        words = self.embedding(tokens)
        if self.mean_context is not None:
            mean = even_weights(mask, words.dtype)[:, None] @ words
            context = self.mean_context(mean[:, 0])
        bag, weights = self.attention(words, context, mask)
        return self.out(bag), weights


def even_weights(mask: Bool[Tensor, "batch length"], dtype: torch.dtype) -> Tensor:
    """1 / (known words) at each known word; all 0 where there is none."""
    return mask.to(dtype) / mask.sum(dim=1, keepdim=True).clamp(min=1)


def pooled(words: Tensor, weights: Tensor, mask: Tensor, empty: Tensor) -> Tensor:
    """The weighted sum of each bag; the learnt vector for one without words."""
    total = (weights[:, None] @ words)[:, 0]
    return torch.where(mask.any(dim=1, keepdim=True), total, empty)


def check_mask(mask: Tensor, words: Tensor) -> None:
    """Refuse a mask that does not belong to the words, before any work."""
    if mask.shape != words.shape[:2]:
        raise ValueError(f"the mask is {tuple(mask.shape)}, the words {tuple(words.shape)}")
