"""One arm from its seed: built, trained, judged. Every arm takes the same number of steps."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int64
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from toolkit.learn.loop import minibatches, predict, warmup_cosine
from toolkit.learn.nets import conv_net, mlp
from toolkit.search.sicot.longtail import (
    CosineClassifier,
    bucket_accuracy,
    class_balanced_order,
    class_balanced_weights,
    ldam_loss,
    logit_adjust,
    tau_normalise,
)
from toolkit.search.sicot.model import Criterion, SICoT
from toolkit.search.sicot.recipe import Arm, Recipe
from toolkit.search.sicot.shop import Task, Titles
from toolkit.search.sicot.words import UNKNOWN, BilinearWordAttention, MeanPooling, WordEncoder

TAUS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
"""Of τ-normalisation; validation images choose."""
CRT_STEPS = 0.3
"""Steps of classifier re-training, on top of all the others."""


def train_arm(recipe: Recipe, name: str, task: Task, titles: Titles | None, seed: int) -> nn.Module:
    """Train one arm from its seed's initialisation.

    Image branch, word branch and order of images draw from streams of their own, so that arms
    share them.

    Args:
        recipe: the settings of all arms.
        name: of the arm.
        task: images and classes.
        titles: words, for an arm that has them.
        seed: of weights and order.

    Returns:
        A `SICoT`, or a sequence of backbone and classifier.
    """
    arm, rate = recipe.arm(name), recipe.rate(name)
    if not arm.words:
        return _train_images(recipe, arm, task, titles, seed, rate)
    assert titles is not None
    model = build_sicot(recipe, arm, task, titles, seed)
    tokens = titles.train
    if arm.shuffled:
        tokens = tokens[torch.randperm(len(tokens), generator=stream(seed, 3)).to(tokens.device)]
    if arm.two_stage:
        return _train_two_stages(recipe, model, task, tokens, seed, rate)
    criterion = criteria(recipe, arm, task)

    def loss(index: Tensor, step: int) -> Tensor:
        words, y = tokens[index], task.y[index]
        out = model(task.x[index], words, words > UNKNOWN, y)
        return model.loss(out, y, criterion(step))

    _descend(recipe, model, loss, order(recipe, arm, task, seed), rate)
    return model


def build_sicot(recipe: Recipe, arm: Arm, task: Task, titles: Titles, seed: int) -> SICoT:
    """The untrained model of an arm; its image branch has the weights of the visual-only arms."""
    attention: nn.Module
    with seeded(seed, 1):
        if arm.pooling == "mean":
            attention = MeanPooling(recipe.d_word)
        else:
            attention = BilinearWordAttention(recipe.d_word, recipe.d, recipe.rank)
        encoder = WordEncoder(
            titles.vocabulary, recipe.d_word, recipe.d, attention, arm.context == "words"
        )
    with seeded(seed, 0):
        model = SICoT(
            backbone(recipe, task),
            encoder,
            task.num_classes,
            arm.shared,
            arm.coupling,
            arm.lam,
            "class" if arm.context == "class" else "visual",
            arm.stop_gradient,
        )
    return model.to(task.x.device)


def build_visual(recipe: Recipe, task: Task, seed: int) -> nn.Sequential:
    """The untrained backbone and classifier of the visual-only arms."""
    with seeded(seed, 0):
        body = backbone(recipe, task)
        model = nn.Sequential(body, nn.Linear(recipe.d, task.num_classes))
    return model.to(task.x.device)


def stepper(recipe: Recipe, name: str, task: Task, titles: Titles, seed: int) -> Callable[[], None]:
    """One step of training on one batch, to be timed: of `ce`, or of an arm with words."""
    arm = recipe.arm(name)
    x, y, words = (part[: recipe.batch] for part in (task.x, task.y, titles.train))
    visual, heard = build_visual(recipe, task, seed), build_sicot(recipe, arm, task, titles, seed)
    model = heard if arm.words else visual
    optimizer = torch.optim.SGD(model.parameters(), 1e-6, recipe.momentum, fused=True)

    def step() -> None:
        if arm.words:
            loss = heard.loss(heard(x, words, words > UNKNOWN, y), y)
        else:
            loss = F.cross_entropy(visual(x), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def backbone(recipe: Recipe, task: Task) -> nn.Module:
    """A perceptron on features, or three convolutions of stride 2 and the mean over places."""
    if recipe.inputs == "features":
        return mlp(task.x.shape[1], recipe.hidden, recipe.d)
    stages = conv_net(32, 64, recipe.d, in_channels=3)
    return nn.Sequential(stages, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def criteria(recipe: Recipe, arm: Arm, task: Task) -> Callable[[int], Criterion]:
    """The loss of an arm at each step; only LDAM's changes on the way."""
    if arm.loss == "la":
        adjusted = partial(logit_adjust, counts=task.counts, tau=recipe.tau)
        return lambda step: lambda z, y: F.cross_entropy(adjusted(z), y)
    weight = class_balanced_weights(task.counts, recipe.beta)
    if arm.loss == "cb":
        return lambda step: partial(F.cross_entropy, weight=weight)
    if arm.loss == "ldam":
        plain = partial(ldam_loss, counts=task.counts, margin=recipe.margin)
        return lambda step: (
            plain if step < recipe.drw * recipe.steps else partial(plain, weight=weight)
        )
    return lambda step: F.cross_entropy


def order(recipe: Recipe, arm: Arm, task: Task, seed: int) -> Iterator[Int64[Tensor, " batch"]]:
    """Which images each step sees: in a new order each pass, or every class equally often."""
    if arm.sampler == "class":
        total = recipe.steps * recipe.batch
        drawn = class_balanced_order(task.y.cpu(), total, stream(seed, 2))
        yield from drawn.to(task.y.device).split(recipe.batch)
        return
    every = torch.arange(len(task.y), device=task.y.device)
    for (index,) in minibatches(
        every, size=recipe.batch, steps=recipe.steps, generator=stream(seed, 2)
    ):
        yield index


def judge(
    recipe: Recipe, name: str, model: nn.Module, task: Task, titles: Titles | None
) -> dict[str, float]:
    """Accuracies on the judged images, by bucket.

    Returns:
        `few`, `medium`, `many`, `all` from images alone. With words also `few_words`, `all_words`,
        `few_fused`, `all_fused`, and of the attention on titles of judged images: `mass`, the
        weight of the product's own words, and `share`, how many of the known words they are.
    """
    x, y = task.test
    if not isinstance(model, SICoT):
        return bucket_accuracy(predict(model, x).argmax(1), y, task.counts)
    scores = bucket_accuracy(model.predict(x).argmax(1), y, task.counts)
    if titles is None or model.context == "class":
        return scores
    for mode in ("words", "fused"):
        pred = model.predict(x, titles.test, mode).argmax(1)
        found = bucket_accuracy(pred, y, task.counts)
        scores |= {f"{bucket}_{mode}": found[bucket] for bucket in ("few", "all")}
    return scores | attention_mass(model, x, titles)


@torch.no_grad()
def attention_mass(model: SICoT, x: Tensor, titles: Titles) -> dict[str, float]:
    """How much weight a title's informative words get, and how many of its words they are."""
    mask = titles.test > UNKNOWN
    weights = torch.cat(
        [
            model(part, tokens, tokens > UNKNOWN)["weights"]
            for part, tokens in zip(x.split(1024), titles.test.split(1024), strict=True)
        ]
    )
    some = mask.any(dim=1)
    mass = (weights * titles.informative).sum(1)[some].mean()
    share = (titles.informative.sum(1) / mask.sum(1).clamp(min=1))[some].mean()
    return {"mass": float(mass), "share": float(share)}


# --- images alone -------------------------------------------------------------------------------


def _train_images(
    recipe: Recipe, arm: Arm, task: Task, titles: Titles | None, seed: int, rate: float
) -> nn.Sequential:
    body, head = build_visual(recipe, task, seed)
    if arm.loss == "ldam":
        with seeded(seed, 4):
            head = CosineClassifier(recipe.d, task.num_classes)
    if arm.targets:
        assert titles is not None
        vectors = class_vectors(titles, task, recipe.d)
        head = CosineClassifier(vectors.shape[1], task.num_classes, scale=1.0)
        head.weight = nn.Parameter(vectors, requires_grad=False)
    model = nn.Sequential(body, head).to(task.x.device)
    criterion = criteria(recipe, arm, task)

    def loss(index: Tensor, step: int) -> Tensor:
        z, y = model(task.x[index]), task.y[index]
        if arm.targets:  # ‖f̂ − v̂_y‖² of unit vectors
            return (2 - 2 * z.gather(1, y[:, None])).mean()
        return criterion(step)(z, y)

    _descend(recipe, model, loss, order(recipe, arm, task, seed), rate)
    if arm.after:
        return {"crt": _retrained, "tau": _normalised}[arm.after](recipe, model, task, seed, rate)
    return model


def class_vectors(titles: Titles, task: Task, width: int) -> Float[Tensor, "classes width"]:
    """The mean word vector of each class, unit length, in the latent space of training titles.

    The target of label embedding (Frome et al., "DeViSE", 2013), where word vectors are learnt
    from text alone: here from the titles' tf-idf, by a truncated SVD.
    """
    texts = [" ".join(text) for text in titles.texts[0]]
    rows = TfidfVectorizer(token_pattern=r"\S+").fit_transform(texts)
    latent = torch.from_numpy(TruncatedSVD(width, random_state=task.seed).fit_transform(rows))
    total = torch.zeros(task.num_classes, width).index_add_(0, task.y.cpu(), latent.float())
    return F.normalize(total, dim=1).to(task.x.device)


def _retrained(
    recipe: Recipe, model: nn.Sequential, task: Task, seed: int, rate: float
) -> nn.Sequential:
    """Classifier re-training (Kang et al. 2020): a fresh W on frozen features, classes balanced."""
    with seeded(seed, 5):
        head = nn.Linear(recipe.d, task.num_classes).to(task.x.device)
    f = predict(model[0], task.x)
    steps = round(CRT_STEPS * recipe.steps)
    drawn = class_balanced_order(task.y.cpu(), steps * recipe.batch, stream(seed, 5))

    def loss(index: Tensor, step: int) -> Tensor:
        return F.cross_entropy(head(f[index]), task.y[index])

    batches = iter(drawn.to(task.y.device).split(recipe.batch))
    _descend(recipe, head, loss, batches, rate, steps)
    return nn.Sequential(model[0], head)


def _normalised(
    recipe: Recipe, model: nn.Sequential, task: Task, seed: int, rate: float
) -> nn.Sequential:
    """τ-normalisation (Kang et al. 2020), with the τ of the best validation accuracy."""
    x, y = task.val
    weight = model.get_parameter("1.weight").detach()
    f = predict(model[0], x)

    def score(tau: float) -> float:
        return bucket_accuracy((f @ tau_normalise(weight, tau).T).argmax(1), y, task.counts)["all"]

    head = nn.Linear(recipe.d, task.num_classes, bias=False)
    head.weight = nn.Parameter(tau_normalise(weight, max(TAUS, key=score)))
    return nn.Sequential(model[0], head)


# --- words first --------------------------------------------------------------------------------


def _train_two_stages(
    recipe: Recipe, model: SICoT, task: Task, tokens: Tensor, seed: int, rate: float
) -> SICoT:
    """The word branch alone, then the image branch to the classifier it left; full steps each."""

    def by_words(index: Tensor, step: int) -> Tensor:
        words = tokens[index]
        nothing = torch.zeros(len(words), recipe.d, device=words.device)
        s, _ = model.words(words, words > UNKNOWN, nothing)
        return F.cross_entropy(model.classifier(s), task.y[index])

    def by_images(index: Tensor, step: int) -> Tensor:
        return F.cross_entropy(model.classifier(model.backbone(task.x[index])), task.y[index])

    plain = Arm()
    heard = nn.ModuleList([model.words, model.classifier])
    _descend(recipe, heard, by_words, order(recipe, plain, task, seed), rate)
    model.classifier.requires_grad_(False)
    _descend(recipe, model.backbone, by_images, order(recipe, plain, task, seed), rate)
    model.classifier.requires_grad_(True)
    return model


# --- shared by all arms -------------------------------------------------------------------------


def _descend(
    recipe: Recipe,
    model: nn.Module,
    loss: Callable[[Tensor, int], Tensor],
    batches: Iterator[Tensor],
    rate: float,
    steps: int | None = None,
) -> None:
    """SGD with momentum and a cosine; embeddings of words are not decayed, or rare ones vanish."""
    spared = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    learnt = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in learnt if id(p) not in spared], "weight_decay": recipe.weight_decay},
        {"params": [p for p in learnt if id(p) in spared], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=rate,
        momentum=recipe.momentum,
        fused=True,
    )
    total = steps or recipe.steps
    schedule = LambdaLR(optimizer, lambda step: warmup_cosine(step, total))
    model.train()
    for step, index in enumerate(batches):
        value = loss(index, step)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        schedule.step()
    model.eval()


def stream(seed: int, purpose: int) -> torch.Generator:
    """A CPU generator: of the order (2), of shuffled titles (3) and of re-training (5)."""
    state = int(np.random.default_rng([seed, 20 + purpose]).integers(2**62))
    return torch.Generator().manual_seed(state)


@contextmanager
def seeded(seed: int, purpose: int) -> Iterator[None]:
    """Draw weights from a stream of their own: images (0), words (1), other heads (4, 5)."""
    state = int(np.random.default_rng([seed, 20 + purpose]).integers(2**62))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(state)
        yield
