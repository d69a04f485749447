"""One step of CoKe: cluster the batch for the next epoch, learn the labels of the last one.

An objective is called with the model and a batch `(ids, view, …)` and returns the loss; `learn.fit`
does the rest. Between epochs it is told to `begin_epoch` and `end_epoch`.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.learn.distributed import gather_with_grad
from toolkit.learn.loop import predict
from toolkit.representation.coke.baselines import InstanceBank, offline_kmeans
from toolkit.representation.coke.clustering import OnlineConstrainedKMeans
from toolkit.representation.coke.labels import LabelStore
from toolkit.representation.coke.loss import coke_loss, two_view_targets
from toolkit.representation.coke.network import CoKe


class Clusters:
    """Centres, prices and stored labels: all that CoKe keeps beside the network.

    Args:
        kmeans: with one head or several.
        num_instances: N, ids of the data set.
        slots: labels kept while averaging.
        coupled: train on this batch's labels and moving centres instead: what CoKe avoids.
    """

    def __init__(
        self,
        kmeans: OnlineConstrainedKMeans,
        num_instances: int,
        slots: int = 5,
        coupled: bool = False,
    ) -> None:
        self.kmeans, self.slots, self.coupled = kmeans, slots, coupled
        self.store = LabelStore(num_instances, kmeans.heads, device=kmeans.centers.device)
        self.average: LabelStore | None = None
        self.churn: list[float] = []
        # Labels changed and labels seen, on the device: reading them would stop it at every step.
        self._tally = torch.zeros(2, dtype=torch.int64, device=kmeans.centers.device)

    @torch.no_grad()
    def relabel(
        self, ids: Int[Tensor, " batch"], x: Float[Tensor, "batch d"]
    ) -> list[Shaped[Tensor, "batch ..."]]:
        """Assign this rank's batch, update with the batches of all ranks, return what to learn.

        Every rank gathers before it counts, so all compute the same prices and centres.

        Returns:
            For each head the labels of the last epoch, or their average; the new ones for images
            that had none.
        """
        x = x.detach().float()
        new = self.kmeans.assign(x).reshape(len(x), -1)
        old = self.store.get(ids)
        targets = self._targets(ids, new if self.coupled else torch.where(old < 0, new, old))
        everyone = gather_with_grad(ids), gather_with_grad(new)
        self._count(*everyone)
        self.store.put(*everyone)
        if self.average is not None:
            self.average.put(*everyone, share=self.kmeans.share)
        self.kmeans.update(gather_with_grad(x), everyone[1])
        return targets

    def centers(self) -> list[Float[Tensor, "clusters d"]]:
        """What the loss compares with: centres of the last epoch; if coupled, the moving ones."""
        return self.kmeans.running() if self.coupled else self.kmeans.frozen()

    def start_averaging(self) -> None:
        """Begin variance reduction 1, from the labels as they stand."""
        self.kmeans.start_averaging()
        labels = self.store.labels[..., 0].long()
        self.average = LabelStore(
            len(labels), self.kmeans.heads, self.slots, device=self.store.labels.device
        )
        known = (labels >= 0).all(dim=1).nonzero()[:, 0]
        self.average.put(known, labels[known])

    def end_epoch(self) -> None:
        """Freeze the centres and note the churn: the share of labels that changed."""
        self.kmeans.end_epoch()
        changed, seen = self._tally.tolist()
        self.churn.append(changed / seen if seen else float("nan"))
        self._tally.zero_()

    def state_dict(self) -> dict:
        """What a checkpoint needs."""
        average = None if self.average is None else self.average.state_dict()
        return {
            "kmeans": self.kmeans.state_dict(),
            "store": self.store.state_dict(),
            "average": average,
            "churn": self.churn,
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from a checkpoint."""
        self.store.load_state_dict(state["store"])
        if state["average"] is not None:
            self.start_averaging()
            self.average.load_state_dict(state["average"])  # type: ignore[union-attr]
        self.kmeans.load_state_dict(state["kmeans"])
        self.churn = list(state["churn"])

    def _targets(self, ids: Tensor, labels: Int[Tensor, "batch heads"]) -> list[Tensor]:
        if self.average is None:
            return list(labels.unbind(dim=1))
        return self.average.targets(ids)

    def _count(self, ids: Tensor, new: Tensor) -> None:
        old = self.store.get(ids)
        known = old >= 0
        self._tally += torch.stack([(known & (old != new)).sum(), known.sum()])


class SingleView:
    """One augmentation an image: cross-entropy against last epoch's labels, mean over heads.

    Args:
        clusters: what is kept between steps.
        temperature: λ.
        beta: weight of the prediction branch; 1 − beta is that of the projection. The released
            script sets 1.
    """

    def __init__(self, clusters: Clusters, temperature: float, beta: float = 1.0) -> None:
        self.clusters, self.temperature, self.beta = clusters, temperature, beta

    def __call__(self, model: nn.Module, batch: tuple) -> Float[Tensor, ""]:
        """The loss of a batch (ids, view); relabels its images on the way."""
        ids, images = batch
        x, p = model(images)
        centers = self.clusters.centers()  # before the update, also where they move
        targets = self.clusters.relabel(ids, x)
        losses = [
            _branches(x, p, c, y, self.temperature, self.beta)
            for c, y in zip(centers, targets, strict=True)
        ]
        return torch.stack(losses).mean()

    def begin_epoch(self, model: CoKe) -> None:
        """Nothing to prepare: clusters follow the stream."""

    def end_epoch(self) -> None:
        """Freeze the centres."""
        self.clusters.end_epoch()


class TwoViews(SingleView):
    """Two views an image, and any number of small crops: variance reduction 2.

    The mean of the two projections is clustered as it is, not brought back to unit length. Each
    view learns the label softened by the other view. Small crops learn the mean of both targets;
    they and the two large views weigh one half each.

    Args:
        clusters: what is kept between steps.
        temperature: λ.
        alpha: weight of the hard label.
        beta: as in `SingleView`; both branches weigh the same here.
    """

    def __init__(
        self, clusters: Clusters, temperature: float, alpha: float = 0.2, beta: float = 0.5
    ) -> None:
        super().__init__(clusters, temperature, beta)
        self.alpha = alpha

    def __call__(self, model: nn.Module, batch: tuple) -> Float[Tensor, ""]:
        """The loss of a batch (ids, first view, second view, *small crops); relabels on the way."""
        ids, first, second, *crops = batch
        views = [model(first), model(second)]
        xs = [x for x, _ in views]
        centers = self.clusters.centers()
        labels = self.clusters.relabel(ids, (xs[0] + xs[1]) / 2)
        small = [model(crop) for crop in crops]
        losses = [self._head(views, small, y, c) for y, c in zip(labels, centers, strict=True)]
        return torch.stack(losses).mean()

    def _head(
        self, views: list[tuple], small: list[tuple], labels: Tensor, centers: Tensor
    ) -> Float[Tensor, ""]:
        others = [views[1][0], views[0][0]]
        targets = [
            two_view_targets(labels, other.detach(), centers, self.temperature, self.alpha)
            for other in others
        ]
        large = self._mean(views, targets, centers)
        if not small:
            return large
        shared = (targets[0] + targets[1]) / 2
        return (large + self._mean(small, [shared] * len(small), centers)) / 2

    def _mean(
        self, views: Sequence[tuple], targets: Sequence[Tensor], centers: Tensor
    ) -> Float[Tensor, ""]:
        losses = [
            _branches(x, p, centers, y, self.temperature, self.beta)
            for (x, p), y in zip(views, targets, strict=True)
        ]
        return torch.stack(losses).mean()


class OfflineKMeans(SingleView):
    """Labels by k-means over all features before each epoch: DeepCluster's alternation.

    Args:
        clusters: centres and labels; prices stay unused.
        images: of the whole data set, as they are.
        temperature: λ.
        seed: of the k-means.
    """

    def __init__(
        self, clusters: Clusters, images: Float[Tensor, "n c h w"], temperature: float, seed: int
    ) -> None:
        super().__init__(clusters, temperature)
        self.images, self.seed = images, seed

    def __call__(self, model: nn.Module, batch: tuple) -> Float[Tensor, ""]:
        """The loss of a batch (ids, view)."""
        ids, images = batch
        p = model(images)[1]
        targets = self.clusters.store.get(ids).unbind(dim=1)
        losses = [
            coke_loss(p, c, y, self.temperature)
            for c, y in zip(self.clusters.centers(), targets, strict=True)
        ]
        return torch.stack(losses).mean()

    def begin_epoch(self, model: CoKe) -> None:
        """Cluster the features that the network has now."""
        kmeans = self.clusters.kmeans
        x = F.normalize(predict(nn.Sequential(model.backbone, model.projector), self.images), dim=1)
        found = [offline_kmeans(x, k, self.seed) for k in kmeans.heads]
        labels = torch.stack([labels for labels, _ in found], dim=1)
        self.clusters.store.put(torch.arange(len(x), device=x.device), labels)
        kmeans.centers = torch.cat([centers for _, centers in found])
        kmeans.previous = kmeans.centers.clone()


class Instances:
    """One view against a bank of all images: instance discrimination."""

    def __init__(self, bank: InstanceBank) -> None:
        self.bank = bank

    def __call__(self, model: nn.Module, batch: tuple) -> Float[Tensor, ""]:
        """The loss of a batch (ids, view); updates the bank."""
        ids, images = batch
        x, p = model(images)
        loss = self.bank.loss(ids, p)
        self.bank.update(ids, x)
        return loss

    def begin_epoch(self, model: CoKe) -> None:
        """Nothing to prepare."""

    def end_epoch(self) -> None:
        """Nothing to freeze."""


def _branches(
    x: Tensor, p: Tensor, centers: Tensor, targets: Tensor, temperature: float, beta: float
) -> Float[Tensor, ""]:
    """β CE(p) + (1 − β) CE(x)."""
    loss = coke_loss(p, centers, targets, temperature)
    if beta == 1:
        return loss
    return beta * loss + (1 - beta) * coke_loss(x, centers, targets, temperature)
