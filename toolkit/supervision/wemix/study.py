"""Every setting that the chapter runs."""

from dataclasses import replace

from toolkit.supervision.wemix.method import PRESETS
from toolkit.supervision.wemix.recipe import Recipe

METHODS = ("aug", "augdrop", "mixloss", "wemix")
STRENGTHS = (0.15, 0.35, 0.65)


def studies(profile: str) -> dict[str, list[Recipe]]:
    """Every setting of the chapter, by the study it belongs to.

    Args:
        profile: `"quick"` or `"full"`.

    Returns:
        In both: `originals` and `strength` (C1 to C4). In `full` alone: `control` (the doubled
        batch), `mixup`, `regmixup`, `lam` and `lam_tuning` (C5), `drop` (T₁), `refine`, `kinds`
        (other augmentations), `rates` (tuning seeds). What `lam` and `drop` lack, λ = 0.5 and
        T₁ / T = 0.75, is in `strength`.

    Raises:
        ValueError: for another profile.
    """
    if profile not in ("quick", "full"):
        raise ValueError(f"the chapter's studies are those of quick or full, got {profile!r}")
    quick = profile == "quick"
    affine = Recipe(arms=METHODS, seeds=4 if quick else 8)
    originals = replace(affine, arms=("orig",), seeds=4 if quick else 20, draws=0)
    if quick:
        return {"originals": [originals], "strength": [affine]}
    strong = replace(affine, strength=0.65, draws=0)
    mixed = replace(affine, augmentation="mixup", strength=0.0, draws=0)
    return {
        "originals": [originals],
        "strength": [replace(affine, strength=strength) for strength in STRENGTHS],
        "control": [replace(affine, arms=("orig_double",), draws=0)],
        "mixup": [replace(mixed, seeds=20)],
        "regmixup": [replace(mixed, arms=("regmixup",))],
        "lam": [replace(strong, arms=("mixloss",), lam=lam) for lam in (0.25, 0.75)],
        "lam_tuning": [
            replace(strong, arms=(*ends, "mixloss"), lam=lam, seeds=4)
            for lam, ends in ((0.25, ()), (0.5, ("orig", "aug")), (0.75, ()))
        ],
        "drop": [
            replace(strong, arms=("augdrop", "wemix"), stage1_fraction=fraction, seeds=3)
            for fraction in (0.25, 0.5, 0.9)
        ],
        "refine": [replace(strong, arms=("refine",))],
        "kinds": [
            replace(affine, augmentation=name, strength=strength, seeds=2, draws=0)
            for name, strength in (
                ("colour", 0.65),
                ("rand_augment", 0.35),
                ("trivial_augment", 0.0),
                ("cutmix", 0.0),
            )
        ],
        "rates": [
            replace(affine, arms=PRESETS, lr=lr, seeds=2, draws=0) for lr in (0.025, 0.05, 0.1)
        ],
    }
