"""A molecule set in OGB's raw layout, and a graph network that reads it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.data.store import root

FOLDER = "ogbg_molhiv"
FILES = (
    "raw/node-feat.csv.gz",
    "raw/edge-feat.csv.gz",
    "raw/edge.csv.gz",
    "raw/num-node-list.csv.gz",
    "raw/num-edge-list.csv.gz",
    "raw/graph-label.csv.gz",
    "split/scaffold/train.csv.gz",
    "split/scaffold/test.csv.gz",
)


@dataclass(frozen=True, eq=False)
class Molecules:
    """Graphs one after another: atoms and bonds as categories, one label each.

    Attributes:
        atoms: categories of every atom.
        bonds: categories of every bond.
        ends: both atoms of a bond, counted within their molecule.
        first_atom: where a molecule's atoms begin, and the end.
        first_bond: where its bonds begin, and the end.
        positive: the label.
        train: molecules to train on.
        test: molecules to test on.
    """

    atoms: Int[Tensor, "N f"]
    bonds: Int[Tensor, "M g"]
    ends: Int[Tensor, "M 2"]
    first_atom: Int[Tensor, " n_plus_1"]
    first_bond: Int[Tensor, " n_plus_1"]
    positive: Bool[Tensor, " n"]
    train: Int[Tensor, " a"]
    test: Int[Tensor, " b"]


@dataclass(frozen=True, eq=False)
class Graphs:
    """A batch of molecules as one graph; every bond runs both ways."""

    atoms: Int[Tensor, "N f"]
    bonds: Int[Tensor, "M g"]
    source: Int[Tensor, " M"]
    target: Int[Tensor, " M"]
    owner: Int[Tensor, " N"]
    count: int


def load_molecules(folder: str = "") -> Molecules:
    """Read a binary set with OGB's raw files, such as ogbg-molhiv, with its scaffold split.

    Raises:
        FileNotFoundError: naming the folder and the missing files.
    """
    place = Path(folder).expanduser() if folder else root() / FOLDER
    if missing := [name for name in FILES if not (place / name).is_file()]:
        raise FileNotFoundError(
            f"{place} lacks {', '.join(missing)}; unpack OGB's archive of ogbg-molhiv there, or "
            "name its folder with --set folder=PATH"
        )
    atoms, bonds, ends, nodes, edges, label, train, test = (
        torch.from_numpy(pd.read_csv(place / name, header=None).to_numpy()) for name in FILES
    )
    return Molecules(
        atoms.long(),
        bonds.long(),
        ends.long(),
        F.pad(nodes[:, 0].long().cumsum(0), (1, 0)),
        F.pad(edges[:, 0].long().cumsum(0), (1, 0)),
        label[:, 0] > 0.5,
        train[:, 0].long(),
        test[:, 0].long(),
    )


def collate(data: Molecules, index: Int[Tensor, " b"], device: torch.device) -> Graphs:
    """The molecules `index` as one graph with consecutive atoms."""
    atoms, owner, starts = _slices(data.first_atom, index)
    bonds, bond_owner, _ = _slices(data.first_bond, index)
    ends = data.ends[bonds] + starts[bond_owner][:, None]
    both = torch.cat([ends, ends.flip(1)])
    kinds = data.bonds[bonds].repeat(2, 1)
    parts = (data.atoms[atoms], kinds, both[:, 0], both[:, 1], owner)
    categories, kinds, source, target, owner = (part.to(device) for part in parts)
    return Graphs(categories, kinds, source, target, owner, len(index))


def _slices(first: Int[Tensor, " n_plus_1"], index: Int[Tensor, " b"]) -> tuple:
    """Rows of the chosen slices, whose slice they are, and where each now begins."""
    sizes = first[index + 1] - first[index]
    starts = sizes.cumsum(0) - sizes
    owner = torch.arange(len(index)).repeat_interleave(sizes)
    return torch.arange(int(sizes.sum())) - (starts - first[index])[owner], owner, starts


class GraphNet(nn.Module):
    """A graph isomorphism network with bond features, mean-pooled to one logit.

    Xu, Hu, Leskovec and Jegelka (2019); bonds enter as in Hu et al. (2020).

    Args:
        atom_sizes: number of categories of each atom feature.
        bond_sizes: of each bond feature.
        width: of every layer.
        depth: rounds of messages.
    """

    def __init__(
        self, atom_sizes: Sequence[int], bond_sizes: Sequence[int], width: int = 300, depth: int = 5
    ) -> None:
        super().__init__()
        self.atoms = nn.ModuleList(nn.Embedding(size, width) for size in atom_sizes)
        self.bonds = nn.ModuleList(nn.Embedding(size, width) for size in bond_sizes)
        self.rounds = nn.ModuleList(
            nn.Sequential(
                nn.Linear(width, 2 * width),
                nn.BatchNorm1d(2 * width),
                nn.ReLU(),
                nn.Linear(2 * width, width),
                nn.BatchNorm1d(width),
            )
            for _ in range(depth)
        )
        self.head = nn.Linear(width, 1)

    def forward(self, graphs: Graphs) -> Float[Tensor, "count 1"]:
        """One logit a molecule."""
        h = sum(table(column) for table, column in zip(self.atoms, graphs.atoms.T, strict=True))
        bond = sum(table(column) for table, column in zip(self.bonds, graphs.bonds.T, strict=True))
        for layer in self.rounds:
            message = F.relu(h[graphs.source] + bond)
            h = F.relu(layer(h + torch.zeros_like(h).index_add(0, graphs.target, message)))
        total = h.new_zeros(graphs.count, h.shape[1]).index_add(0, graphs.owner, h)
        size = torch.bincount(graphs.owner, minlength=graphs.count).clamp(min=1)
        return self.head(total / size[:, None])
