"""Kernel matrices of features, their Nyström form, and distances that never need an n×n matrix.

Rows are examples. The linear kernel of features X [n, d] is K = XXᵀ; the paper writes examples as
columns. Products are taken in float64: differences of large kernels cancel.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


def nystrom(
    partial: Float[Tensor, "n m"], landmark: Float[Tensor, "m m"], rcond: float = 1e-6
) -> Float[Tensor, "n m"]:
    """The factor A = C W^(+1/2) of the Nyström approximation K̂ = C W⁺ Cᵀ = AAᵀ.

    W^(+1/2) is the symmetric root of the pseudo-inverse: repeated or dependent landmarks make W
    singular and add nothing.

    Args:
        partial: C, the kernel of all examples with the landmarks.
        landmark: W, the kernel of the landmarks with each other.
        rcond: eigenvalues of W up to this share of the largest count as zero.

    Raises:
        ValueError: if W is not finite, symmetric and positive semi-definite, or rcond is not in
            [0, 1).
    """
    if not 0 <= rcond < 1:
        raise ValueError(f"rcond must lie in [0, 1), got {rcond}")
    if not (torch.isfinite(landmark).all() and torch.isfinite(partial).all()):
        raise ValueError("the kernel of the landmarks holds a value that is not finite")
    kernel = landmark.double()
    size = kernel.abs().max()
    if (kernel - kernel.T).abs().max() > 1e-4 * size:
        raise ValueError("the kernel of the landmarks must be symmetric")
    values, vectors = torch.linalg.eigh((kernel + kernel.T) / 2)
    if values[0] < -1e-4 * size:
        raise ValueError(
            "the kernel of the landmarks must be positive semi-definite, its least eigenvalue is "
            f"{float(values[0]):.3g}"
        )
    kept = values > rcond * values[-1].clamp(min=0)
    root = torch.where(kept, values.clamp(min=1e-300).rsqrt(), 0.0)
    return (partial.double() @ (vectors * root) @ vectors.T).to(partial.dtype)


def nystrom_error(
    x: Float[Tensor, "n d"], landmarks: Float[Tensor, "m _"], rcond: float = 1e-6
) -> Float[Tensor, ""]:
    """‖K − K̂‖_F for the linear kernel of x, from d×d products only (T3).

    With Π the projector on the span of the landmarks and R = X(I − Π), K − K̂ = RRᵀ, and
    ‖RRᵀ‖_F = ‖RᵀR‖_F.

    Args:
        x: features.
        landmarks: in the space of the features.
        rcond: as in `nystrom`.

    Raises:
        ValueError: if the landmarks have another width than the features.
    """
    if x.shape[1] != landmarks.shape[1]:
        raise ValueError(f"features are {x.shape[1]} wide, landmarks {landmarks.shape[1]}")
    x, landmarks = x.double(), landmarks.double()
    _, scale, basis = torch.linalg.svd(landmarks, full_matrices=False)
    basis = basis[scale**2 > rcond * scale[0] ** 2]
    rest = x - x @ basis.T @ basis
    return torch.linalg.matrix_norm(rest.T @ rest)


def best_error(x: Float[Tensor, "n d"], rank: int) -> Float[Tensor, ""]:
    """‖K − K_rank‖_F of the best approximation of that rank: no landmarks can do better."""
    values = torch.linalg.svdvals(x.double())
    return values[rank:].pow(4).sum().sqrt()


def gram_norm(x: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """‖K‖_F = ‖XᵀX‖_F of the linear kernel."""
    return torch.linalg.matrix_norm(x.double().T @ x.double())


def gram_distance(xs: Float[Tensor, "n ds"], xt: Float[Tensor, "_ dt"]) -> Float[Tensor, ""]:
    """‖K_S − K_T‖_F of two linear kernels of the same examples, whatever the widths.

    ‖K_S − K_T‖² = ‖X_SᵀX_S‖² + ‖X_TᵀX_T‖² − 2‖X_SᵀX_T‖², all of size d×d.

    Args:
        xs: features of the student.
        xt: features of the teacher, of the same examples.

    Raises:
        ValueError: if the numbers of examples differ.
    """
    _same_examples(xs, xt)
    xs, xt = xs.double(), xt.double()
    cross = torch.linalg.matrix_norm(xs.T @ xt).square()
    square = gram_norm(xs).square() + gram_norm(xt).square() - 2 * cross
    return square.clamp(min=0).sqrt()


def linear_cka(xs: Float[Tensor, "n ds"], xt: Float[Tensor, "_ dt"]) -> Float[Tensor, ""]:
    """Centred kernel alignment, in [0, 1]: 1 if the kernels agree up to a factor and a shift.

    Kornblith, Norouzi, Lee and Hinton, "Similarity of neural network representations revisited"
    (2019), Eq. 8. NaN if the features of either do not vary.

    Args:
        xs: features of the student.
        xt: features of the teacher, of the same examples.

    Raises:
        ValueError: if the numbers of examples differ.
    """
    _same_examples(xs, xt)
    xs, xt = (x.double() - x.double().mean(0) for x in (xs, xt))
    cross = torch.linalg.matrix_norm(xs.T @ xt).square()
    return cross / (gram_norm(xs) * gram_norm(xt))


class TransferBound(NamedTuple):
    """The terms of T1 and T2 for a student and a teacher, all Frobenius norms.

    Attributes:
        full: ‖K_S − K_T‖.
        partial: ‖C_S − C_T‖.
        landmark: ‖W_S − W_T‖.
        right: the right side of T1, which `full` cannot exceed.
        left_out: ε_S + ε_T, what remains of it where the partial kernels agree.
    """

    full: float
    partial: float
    landmark: float
    right: float
    left_out: float


def transfer_bound(
    xs: Float[Tensor, "n ds"], xt: Float[Tensor, "_ dt"], averaging: Float[Tensor, "_ m"]
) -> TransferBound:
    """T1: ‖K_S − K_T‖ ≤ ε_S + ε_T + (‖A_S‖₂ + ‖A_T‖₂) ‖A_S − A_T‖.

    Args:
        xs: features of the student.
        xt: features of the teacher, of the same examples.
        averaging: M; the landmarks of both networks are MᵀX, so that T2 applies.

    Raises:
        ValueError: if the numbers of examples differ.
    """
    _same_examples(xs, xt)
    if len(averaging) != len(xs):
        raise ValueError(f"{len(averaging)} rows of the averaging matrix for {len(xs)} examples")
    parts = []
    for x in (xs.double(), xt.double()):
        marks = averaging.double().T @ x
        partial, landmark = x @ marks.T, marks @ marks.T
        factor = nystrom(partial, landmark)
        parts.append((partial, landmark, factor, nystrom_error(x, marks)))
    student, teacher = parts
    left_out = student[3] + teacher[3]
    spread = sum(torch.linalg.matrix_norm(part[2], 2) for part in parts)
    return TransferBound(
        full=float(gram_distance(xs, xt)),
        partial=float((student[0] - teacher[0]).norm()),
        landmark=float((student[1] - teacher[1]).norm()),
        right=float(left_out + spread * (student[2] - teacher[2]).norm()),
        left_out=float(left_out),
    )


def _same_examples(xs: Tensor, xt: Tensor) -> None:
    if len(xs) != len(xt):
        raise ValueError(f"both need the same examples, got {len(xs)} and {len(xt)} rows")
