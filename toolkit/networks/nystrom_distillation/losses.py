"""What a student may be asked to share with its teacher, beside the labels.

Every loss takes the student's tensor first and lets no gradient into the teacher.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Scalar = Float[Tensor, ""]


def kda_loss(
    fs: Float[Tensor, "b ds"],
    ft: Float[Tensor, "_ dt"],
    cs: Float[Tensor, "m _"],
    ct: Float[Tensor, "_ _"],
    eps: float = 1e-12,
) -> Scalar:
    """Match the partial kernels of a batch with the landmarks of each network.

    ℓ = Σ_{i,l} smoothL1(x_i^S·d_l^S − x_i^T·d_l^T) / ‖C_T‖_F, with the transition of smooth-L1 at 1
    (Qian, Li and Hu 2022, and `loss.py` of their code). Only `fs` gets a gradient. The widths of
    student and teacher may differ: kernels are compared, not features.

    Args:
        fs: features of the student.
        ft: features of the teacher, of the same examples.
        cs: landmarks of the student, in the student's space.
        ct: the same landmarks in the teacher's space.
        eps: least denominator.

    Raises:
        ValueError: if the batches, the numbers of landmarks, or a network's widths differ.
    """
    _same_batch(fs, ft)
    if len(cs) != len(ct):
        raise ValueError(f"both networks need the same landmarks, got {len(cs)} and {len(ct)}")
    if fs.shape[1] != cs.shape[1] or ft.shape[1] != ct.shape[1]:
        raise ValueError(
            f"landmarks must be as wide as their features, got {cs.shape[1]} for {fs.shape[1]} "
            f"(student) and {ct.shape[1]} for {ft.shape[1]} (teacher)"
        )
    student = fs @ cs.detach().T
    teacher = ft.detach() @ ct.detach().T
    total = F.smooth_l1_loss(student, teacher, reduction="sum")
    return total / teacher.norm().clamp(min=eps)


def gram_loss(fs: Float[Tensor, "b ds"], ft: Float[Tensor, "_ dt"]) -> Scalar:
    """The same loss with the batch itself as landmarks: the kernel matrix of a mini-batch.

    Raises:
        ValueError: if the batches differ.
    """
    return kda_loss(fs, ft, fs.detach(), ft)


def sp_loss(fs: Float[Tensor, "b ds"], ft: Float[Tensor, "_ dt"]) -> Scalar:
    """Similarity-preserving distillation: squared error of row-normalised batch kernels, over b².

    Tung and Mori, "Similarity-preserving knowledge distillation" (2019), Eq. 4.

    Raises:
        ValueError: if the batches differ.
    """
    _same_batch(fs, ft)
    student = F.normalize(fs @ fs.T)
    teacher = F.normalize(ft @ ft.T).detach()
    return (student - teacher).square().mean()


def rkd_loss(
    fs: Float[Tensor, "b ds"],
    ft: Float[Tensor, "_ dt"],
    distance: float = 25.0,
    angle: float = 50.0,
) -> Scalar:
    """Relational distillation: distances of pairs over their mean, and angles of triplets.

    Park, Kim, Lu and Cho, "Relational knowledge distillation" (2019), Eqs. 5 and 9.

    Args:
        fs: features of the student.
        ft: features of the teacher, of the same examples.
        distance: weight of the pairs.
        angle: weight of the triplets.

    Raises:
        ValueError: if the batches differ.
    """
    _same_batch(fs, ft)
    with torch.no_grad():
        pairs, triplets = _relative_distances(ft), _angles(ft)
    far = F.smooth_l1_loss(_relative_distances(fs), pairs)
    return distance * far + angle * F.smooth_l1_loss(_angles(fs), triplets)


def kd_loss(zs: Float[Tensor, "b k"], zt: Float[Tensor, "_ _"], temperature: float = 4.0) -> Scalar:
    """Soft labels: T² KL(softmax(z_T / T) ‖ softmax(z_S / T)), mean over the batch.

    Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network" (2015), Section 2.

    Raises:
        ValueError: if the shapes differ, or the temperature is not positive.
    """
    if zs.shape != zt.shape:
        raise ValueError(f"soft labels need equal logits, got {[*zs.shape]} and {[*zt.shape]}")
    if temperature <= 0:
        raise ValueError(f"the temperature must be positive, got {temperature}")
    student = F.log_softmax(zs / temperature, 1)
    teacher = F.log_softmax(zt.detach() / temperature, 1)
    divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return temperature**2 * divergence


def hint_loss(adapted: Float[Tensor, "b d"], ft: Float[Tensor, "_ _"]) -> Scalar:
    """FitNet's hint: the mean squared error of features, the student's through an adaptor.

    Romero et al., "FitNets: hints for thin deep nets" (2015), Eq. 3.

    Raises:
        ValueError: if the shapes differ: the adaptor must have the teacher's width.
    """
    if adapted.shape != ft.shape:
        raise ValueError(
            f"hints need equal shapes, got {[*adapted.shape]} and {[*ft.shape]}; put an adaptor "
            "of the teacher's width behind the student"
        )
    return F.mse_loss(adapted, ft.detach())


def attention(maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b hw"]:
    """Where a feature map is active: the mean square over channels, of unit length."""
    return F.normalize(maps.square().mean(1).flatten(1))


def at_loss(
    maps: Float[Tensor, "b c h w"],
    teacher: Float[Tensor, "_ _"],
) -> Scalar:
    """Attention transfer: the mean squared difference of attentions.

    Zagoruyko and Komodakis, "Paying more attention to attention" (2017), Eq. 2.

    Args:
        maps: of the student.
        teacher: `attention` of the teacher's maps.

    Raises:
        ValueError: if the maps have another size.
    """
    student = attention(maps)
    if student.shape != teacher.shape:
        raise ValueError(f"attentions differ in size: {[*student.shape]}, {[*teacher.shape]}")
    return (student - teacher.detach()).square().mean()


def _relative_distances(x: Float[Tensor, "b d"]) -> Float[Tensor, "b b"]:
    """Euclidean distances over the mean of the positive ones; safe to differentiate at 0."""
    square = (x.square().sum(1)[:, None] + x.square().sum(1) - 2 * x @ x.T).clamp(min=1e-12)
    apart = 1 - torch.eye(len(x), dtype=x.dtype, device=x.device)
    distances = square.sqrt() * apart
    return distances / distances[distances > 0].mean()


def _angles(x: Float[Tensor, "b d"]) -> Float[Tensor, "b b b"]:
    """Cosines of the angles at every example between every two others."""
    towards = F.normalize(x[None] - x[:, None], dim=2)
    return towards @ towards.transpose(1, 2)


def _same_batch(fs: Tensor, ft: Tensor) -> None:
    if len(fs) != len(ft):
        raise ValueError(f"student and teacher see different batches: {len(fs)} and {len(ft)} rows")
