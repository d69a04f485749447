"""What the small experiment trains: arms by name, and the hyper-parameters of all of them."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Arm:
    """One way to train; the first block is SICoT's, the second is for images alone."""

    words: bool = True
    titles: str = "own"  # or shared, renamed: see `product_words`
    shuffled: bool = False  # word bags handed to other images, once, before training
    pooling: str = "attention"  # or mean
    context: str = "visual"  # or words, class
    stop_gradient: bool = True  # between the attention and its context
    shared: bool = True  # one classifier for both branches
    coupling: str = "none"  # or kl, l2
    lam: float = 0.0
    two_stage: bool = False  # words first, then images to the classifier that words taught

    loss: str = "ce"  # or la (logit adjustment), cb (class weights), ldam
    sampler: str = "instance"  # or class
    after: str = ""  # on the trained features of `ce`: crt or tau
    targets: bool = False  # regress the feature to the mean word vector of the class


_IMAGE = Arm(words=False)
ARMS: dict[str, Arm] = {
    "ce": _IMAGE,
    "balanced": replace(_IMAGE, sampler="class"),
    "cb": replace(_IMAGE, loss="cb"),
    "la": replace(_IMAGE, loss="la"),
    "crt": replace(_IMAGE, after="crt"),
    "tau": replace(_IMAGE, after="tau"),
    "ldam": replace(_IMAGE, loss="ldam"),
    "devise": replace(_IMAGE, targets=True),
    "sicot": Arm(),
    "mean": Arm(pooling="mean"),
    "shuffled": Arm(shuffled=True),
    "sicot_la": Arm(loss="la"),
    "sicot_balanced": Arm(sampler="class"),
    "separate": Arm(shared=False),
    "leaky": Arm(shared=False, stop_gradient=False),
    "open": Arm(stop_gradient=False),
    "words_context": Arm(context="words"),
    "class_context": Arm(context="class"),
    "two_stage": Arm(two_stage=True, context="words"),
    "shared": Arm(titles="shared"),
    "renamed": Arm(titles="renamed"),
    "kl": Arm(coupling="kl", lam=0.3),
    "mean_kl": Arm(coupling="kl", lam=0.3, pooling="mean"),
    "separate_kl": Arm(coupling="kl", lam=0.3, shared=False),
    "l2": Arm(coupling="l2", lam=0.3),
}
"""By name. `NAME@0.1` sets λ, `NAME+class` samples classes equally."""

MAIN = ("ce", "balanced", "sicot", "mean", "shuffled")
CNN = ("ce", "sicot", "mean", "shuffled", "la", "sicot_la")
BASELINES = ("balanced", "cb", "la", "crt", "tau", "ldam", "devise")
CONTROLS = ("shuffled", "separate", "leaky", "shared", "renamed")
VARIANTS = ("open", "words_context", "class_context", "two_stage", "sicot_balanced")
LAMS = (0.1, 0.3, 1.0)


@dataclass(frozen=True)
class Recipe:
    """One draw of the shop, every arm on it, equal steps for all."""

    arms: tuple[str, ...] = MAIN
    seeds: int = 2  # draws of the tail, titles, images and weights
    world: str = "shop"  # or attributes, where images are made of what words name
    products: int = 200  # C; the paper's sets: 1e3 to 1e6
    n_max: int = 60  # images of the largest class
    n_min: int = 2  # of the smallest: imbalance 30
    noise_words: int = 5  # sellers' words in a title
    length: int = 16  # T, words
    inputs: str = "features"  # or images, for the convolutional network
    hidden: int = 256  # of the perceptron on features
    d: int = 64  # of visual feature and semantic embedding; in the paper's setting 2,048
    d_word: int = 32  # of a word
    rank: int = 32  # k, of the bilinear form
    batch: int = 128
    steps: int = 650
    lr: float = 0.1  # of SGD, with a cosine to 0
    rates: tuple[tuple[str, float], ...] = ()  # learning rates of single arms
    momentum: float = 0.9
    weight_decay: float = 5e-4  # not of the words' embeddings
    tau: float = 1.0  # of logit adjustment
    beta: float = 0.999  # of class-balanced weights
    margin: float = 0.5  # of LDAM's rarest class
    drw: float = 0.8  # share of the steps after which LDAM weighs classes
    per_class: bool = False  # also return the accuracy of each class

    def __post_init__(self) -> None:
        """Refuse what cannot run, before any work."""
        if not self.arms:
            raise ValueError("arms must name at least one")
        for arm in self.arms:
            self.arm(arm)
        if self.inputs not in ("features", "images"):
            raise ValueError(f"inputs is 'features' or 'images', got {self.inputs!r}")
        if self.world not in ("shop", "attributes") or (
            self.world == "attributes" and self.inputs == "images"
        ):
            raise ValueError(
                "world is 'shop', or 'attributes' with features; got "
                f"{self.world!r} with {self.inputs}"
            )
        if min(self.steps, self.batch, self.length, self.d, self.d_word, self.rank) < 1:
            raise ValueError("steps, batch, length and widths must be at least 1")
        if not 1 <= self.n_min <= self.n_max or self.products < 2:
            raise ValueError(
                f"need 1 ≤ n_min ≤ n_max and two products, got {self.n_min}, {self.n_max}, "
                f"{self.products}"
            )

    def arm(self, name: str) -> Arm:
        """The arm of that name, with its λ.

        Raises:
            ValueError: for an unknown arm, or a λ where nothing is coupled.
        """
        plain, _, sampler = name.partition("+")
        base, _, lam = plain.partition("@")
        if base not in ARMS or sampler not in ("", "class"):
            raise ValueError(f"arms are {', '.join(ARMS)}; got {name!r}")
        if lam and ARMS[base].coupling == "none":
            raise ValueError(f"{base} has no coupling that λ could weigh, got {name!r}")
        arm = replace(ARMS[base], lam=float(lam)) if lam else ARMS[base]
        return replace(arm, sampler="class") if sampler else arm

    def rate(self, name: str) -> float:
        """The learning rate of an arm; with another λ, or without its own, that of a relative."""
        own = dict(self.rates)
        base = name.partition("+")[0].partition("@")[0]
        return own.get(name, own.get(base, own.get(RELATIVES.get(base, ""), self.lr)))


RELATIVES = {
    name: "sicot" for name, arm in ARMS.items() if arm.words and name != "sicot"
} | dict.fromkeys(("crt", "tau", "separate", "leaky"), "ce")
"""Whose learning rate an arm takes that has none of its own; controls take that of their rival."""

RATES = (0.05, 0.1, 0.2, 0.4)
"""Learning rates that validation images choose from, for every tuned arm on features."""
OWN_RATES = {"ldam": (0.0125, 0.025, 0.05, 0.1), "devise": (0.4, 0.8, 1.6, 3.2)}
"""The same where the loss has another scale: thirty times a cosine, or the cosine itself."""
CNN_RATES = (0.1, 0.3, 0.9)
"""The same for the convolutional network."""
TUNED = ("ce", "balanced", "cb", "la", "ldam", "devise", "sicot", "mean", "sicot_la")
"""Arms with a learning rate of their own; a control has that of its rival."""
CNN_TUNED = ("ce", "sicot")


def studies(profile: str) -> dict[str, list[Recipe]]:
    """Every setting of the chapter, by the study it belongs to.

    `main` holds most arms on features. In `full` alone: `variants` (the rest), `cnn` (end to end
    from pixels), `lam`
    (coupling and its weight), `noise` (sellers' words), `imbalance` and `sizes` (other tails and
    a larger number of products), `attributes` (a world where the method must work).

    Raises:
        ValueError: for another profile.
    """
    if profile == "quick":
        return {"main": [Recipe(per_class=True)]}
    if profile != "full":
        raise ValueError(f"the chapter's studies are those of quick or full, got {profile!r}")
    main = Recipe(
        arms=("ce", *BASELINES, "sicot", "mean", "sicot_la", *CONTROLS),
        seeds=5,
        products=300,
        steps=700,
    )
    pair = replace(main, arms=("ce", "sicot"))
    lam = (*(f"kl@{value}" for value in LAMS), "l2", "mean_kl", "separate_kl")
    heard = replace(main, arms=("sicot", "mean"), products=150, steps=400, length=64)
    pixels = Recipe(arms=CNN, seeds=5, inputs="images", d=128, products=150, steps=400)
    direct = ("ce", "sicot", "mean", "shuffled", "separate", "renamed")
    return {
        "main": [main],
        "variants": [replace(main, arms=VARIANTS, seeds=3)],
        "cnn": [pixels],
        "lam": [replace(main, arms=lam)],
        "noise": [replace(heard, noise_words=n) for n in (5, 10, 20, 40)],
        "imbalance": [replace(pair, products=200, steps=500, n_max=n) for n in (20, 60, 200)],
        "sizes": [replace(pair, products=600, steps=1000)],
        "attributes": [replace(main, arms=direct, world="attributes", steps=800)],
    }


def tuning_grids(profile: str) -> dict[str, dict[str, list[Recipe]]]:
    """The rates to choose from, by study and arm, on fewer products and steps than the study has.

    Every arm of a study has equally many.
    """
    whole = studies(profile)
    features = replace(whole["main"][0], products=200, steps=500)
    plans = {
        "main": (features, TUNED, RATES),
        "cnn": (replace(whole["cnn"][0], steps=200), CNN_TUNED, CNN_RATES),
    }
    return {
        name: {
            arm: [
                replace(recipe, arms=(arm,), rates=((arm, lr),)) for lr in OWN_RATES.get(arm, rates)
            ]
            for arm in arms
        }
        for name, (recipe, arms, rates) in plans.items()
    }
