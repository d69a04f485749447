"""What words add to a training step (at most 10 %), and attention against torch's own (no slower).

One thread, batch 128. The floor is the step of visual-only training; the peer of the attention is
`torch.nn.MultiheadAttention` with one query, one head and the same masks.
"""

import torch

from _report import report
from toolkit.runtime import race, start
from toolkit.search import sicot

STEP_TARGET, PEER_TARGET = 1.1, 1.0
BATCH, WORDS, D_WORD, D, RANK = 128, 16, 32, 64, 32


def main() -> None:
    """Print each ratio, its spread over rounds, and its target."""
    device = start()
    for products, inputs, d in ((200, "images", 128), (600, "images", 128), (600, "features", 64)):
        recipe = sicot.Recipe(inputs=inputs, d=d, products=products)
        task = sicot.shop_task(recipe, 0, device)
        titles = sicot.draw_titles(task, recipe, "own")
        steps = {name: sicot.stepper(recipe, name, task, titles, 0) for name in ("ce", "sicot")}
        seconds = race(40 if inputs == "images" else 200, 5, **steps)
        target = STEP_TARGET if inputs == "images" else None
        name = f"step with words / without, {products} classes, {inputs}"
        report(name, seconds["sicot"] / seconds["ce"], at_most=target)
    attention()


def attention() -> None:
    """Forward and backward of the attention alone, and of torch's."""
    words = torch.randn(BATCH, WORDS, D_WORD)
    mask = torch.rand(BATCH, WORDS) < 0.8
    mask[:, 0] = True
    ours, context = sicot.BilinearWordAttention(D_WORD, D, RANK), torch.randn(BATCH, D)
    theirs = torch.nn.MultiheadAttention(D_WORD, 1, batch_first=True)
    to_query = torch.nn.Linear(D, D_WORD, bias=False)

    def ours_once() -> None:
        ours.zero_grad(set_to_none=True)
        ours(words, context, mask)[0].sum().backward()

    def theirs_once() -> None:
        theirs.zero_grad(set_to_none=True)
        query = to_query(context)[:, None]
        theirs(query, words, words, key_padding_mask=~mask)[0].sum().backward()

    seconds = race(300, 30, ours=ours_once, theirs=theirs_once)
    report(
        "attention / MultiheadAttention", seconds["ours"] / seconds["theirs"], at_most=PEER_TARGET
    )


if __name__ == "__main__":
    main()
