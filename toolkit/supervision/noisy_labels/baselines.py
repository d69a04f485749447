"""What else one can do with wrong labels: each method trains the same networks on the same data."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from sklearn.metrics import roc_auc_score
from torch import Tensor

from toolkit.supervision.noisy_labels.recipe import NetworkRecipe
from toolkit.supervision.noisy_labels.stack import Stack
from toolkit.supervision.noisy_labels.training import columns, history_columns, train_noisy

Results = dict[str, np.ndarray]


def run_network(recipe: NetworkRecipe, seeds: Sequence[int], device: torch.device) -> Results:
    """Train every arm at every rate for the seeds, side by side.

    Returns:
        `"ARM/METRIC_EPOCH@RATE"`, one value a seed, for `error` (clean test error), `fit_clean`,
        `fit_wrong`, `excess` and `auc` (see `memorisation`); besides
        `"small_loss/purity@RATE"` and what `_stopped` and `_cleaned` add.
    """
    results: Results = {}
    for arm in recipe.arms:
        run = {"early_stopping": _stopped, "cleanlab": _cleaned}.get(arm, _plain)
        results |= run(recipe, arm, Stack(recipe, seeds, device))
    return results


def _plain(recipe: NetworkRecipe, arm: str, stack: Stack) -> Results:
    """The methods that need no second network."""
    if arm == "clean_subset":
        stack.keep(~stack.flipped)
    history = train_noisy(recipe, stack, arm)
    results = history_columns(arm, history, recipe.rates)
    if arm == "small_loss":
        results |= columns(f"{arm}/purity", _purity(stack), recipe.rates)
    return results


def _stopped(recipe: NetworkRecipe, arm: str, stack: Stack) -> Results:
    """Early stopping: a noisy split is set aside, its least error names the checkpoint.

    Adds `error_stopped` (clean test error there) and `epoch_stopped`.
    """
    held_out = torch.arange(recipe.n, device=stack.device) >= (1 - recipe.validation) * recipe.n
    stack.keep((~held_out).expand(stack.given.shape))
    history = train_noisy(recipe, stack, arm, keep_logits=True)
    assert history.logits is not None
    wrong = (history.logits.argmax(-1) != stack.given)[..., held_out].double().mean(-1).cpu()
    best = wrong.argmin(0)[None]  # [1, rates, seeds]
    error = history.metrics["error"].gather(0, best)[0]
    return (
        history_columns(arm, history, recipe.rates)
        | columns(f"{arm}/error_stopped", error, recipe.rates)
        | columns(f"{arm}/epoch_stopped", torch.tensor(recipe.epochs)[best[0]], recipe.rates)
    )


def _cleaned(recipe: NetworkRecipe, arm: str, stack: Stack) -> Results:
    """Training without the examples that cleanlab finds in cross-validated probabilities.

    Adds `purity` (clean labels among the kept), `kept` (their share) and `auc_cv` (of cleanlab's
    label quality score as a detector of wrong labels).
    """
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    probs = out_of_fold(recipe, stack).double().cpu().numpy()
    auc, kept = torch.full(stack.given.shape[:2], torch.nan), torch.empty_like(stack.kept)
    for q, s in np.ndindex(*auc.shape):
        given = stack.given[q, s].cpu().numpy()
        issues = find_label_issues(given, probs[q, s], n_jobs=1)
        kept[q, s] = torch.from_numpy(~issues)
        wrong = stack.flipped[q, s].cpu().numpy()
        if wrong.any():
            auc[q, s] = roc_auc_score(wrong, -get_label_quality_scores(given, probs[q, s]))
    stack.keep(kept)
    history = train_noisy(recipe, stack, arm)
    return (
        history_columns(arm, history, recipe.rates)
        | columns(f"{arm}/purity", _purity(stack), recipe.rates)
        | columns(f"{arm}/kept", stack.kept.double().mean(-1), recipe.rates)
        | columns(f"{arm}/auc_cv", auc, recipe.rates)
    )


def out_of_fold(recipe: NetworkRecipe, stack: Stack) -> Float[Tensor, "q s n k"]:
    """Probabilities for each example by a network that was not trained on it.

    The number of epochs is the one of `fold_epochs` at which the held-out *given* labels are met
    best, for each rate and seed: no clean label is used.
    """
    folds = Stack(recipe, stack.seeds, stack.device, copies=recipe.folds)
    fold = torch.arange(recipe.n, device=stack.device) % recipe.folds
    trains = torch.stack([fold != f for f in range(recipe.folds)])  # [folds, n]
    by_setting = trains.repeat_interleave(len(recipe.rates), dim=0)[:, None]
    folds.keep(by_setting.expand(folds.given.shape))
    history = train_noisy(replace(recipe, epochs=recipe.fold_epochs), folds, keep_logits=True)
    assert history.logits is not None
    every = history.logits.unflatten(1, (recipe.folds, len(recipe.rates)))
    own = fold.view(1, 1, 1, 1, -1, 1).expand(len(every), 1, *every.shape[2:])
    held_out = every.gather(1, own)[:, 0].softmax(-1)  # [epochs, rates, seeds, n, k]
    agrees = (held_out.argmax(-1) == stack.given).double().mean(-1)
    best = agrees.argmax(0)
    return held_out.movedim(0, 2)[_grid(best)]


def _grid(best: Tensor) -> tuple[Tensor, ...]:
    """Index [q, s, best[q, s]]."""
    q, s = (torch.arange(size, device=best.device) for size in best.shape)
    return q[:, None], s[None], best


def _purity(stack: Stack) -> Float[Tensor, "q s"]:
    """The share of clean labels among the examples kept."""
    return (stack.kept & ~stack.flipped).sum(-1) / stack.kept.sum(-1)
