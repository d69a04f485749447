"""The solvable model D2: kernel gradient flow on noisy labels, every time from one `eigh`."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def unit_rows(
    x: Float[Tensor, "n d"], z: Float[Tensor, "m d"]
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "m d"]]:
    """Centre both on the mean of `x` and scale every row to length 1, in double precision.

    Args:
        x: training rows.
        z: test rows.

    Raises:
        ValueError: if a row equals the mean: it has no direction.
    """
    middle = x.double().mean(0)
    centred = x.double() - middle, z.double() - middle
    lengths = [rows.norm(dim=1, keepdim=True) for rows in centred]
    if any(bool((length <= 1e-12).any()) for length in lengths):
        raise ValueError("a row equals the mean of the training rows and has no direction")
    return centred[0] / lengths[0], centred[1] / lengths[1]


def relu_ntk(x: Float[Tensor, "n d"], z: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    r"""Neural tangent kernel of an infinitely wide two-layer ReLU network.

    The network is $f(x)=\sqrt{2/M}\,a^\top\mathrm{relu}(Wx)$ with all weights from $N(0,1)$; then
    $\Theta(u)=\frac1\pi[2u(\pi-\theta)+\sin\theta]$, $\theta=\arccos u$, $u=\langle x,z\rangle$.

    Args:
        x: rows of length 1.
        z: rows of length 1.

    Raises:
        ValueError: if a row is not of length 1 (to 1e-4).
    """
    for name, rows in (("x", x), ("z", z)):
        lengths = rows.norm(dim=1)
        if not bool(((lengths - 1).abs() < 1e-4).all()):
            raise ValueError(f"rows of {name} must have length 1; see unit_rows")
    u = (x @ z.T).clamp(-1, 1)
    theta = u.arccos()
    return (2 * u * (math.pi - theta) + theta.sin()) / math.pi


class KernelFlow:
    r"""Gradient flow from zero on the squared loss of a kernel machine.

    With $\Theta/n=U\Lambda U^\top$ the outputs at time $t$ are linear in the labels:
    $U(I-e^{-\Lambda t})U^\top\tilde Y$ on the training rows and $A(t)\tilde Y$ on the test rows,
    $A(t)=\frac{\Theta_{test}}nU\,\mathrm{diag}\big(\frac{1-e^{-\lambda t}}\lambda\big)U^\top$.
    All times share one eigendecomposition.
    """

    def __init__(self, k_train: Float[Tensor, "n n"], k_test: Float[Tensor, "m n"]) -> None:
        """Decompose the kernel, in double precision; rounding below zero is cut off.

        Args:
            k_train: Θ, symmetric and positive semi-definite.
            k_test: kernel between test and training rows.

        Raises:
            ValueError: if Θ is not symmetric or has a clearly negative eigenvalue.
        """
        kernel = k_train.double() / len(k_train)
        if not torch.allclose(kernel, kernel.T, atol=1e-8):
            raise ValueError("the training kernel must be symmetric")
        values, self.vectors = torch.linalg.eigh(kernel)
        if values[0] < -1e-8 * values[-1]:
            raise ValueError(f"the kernel is not positive semi-definite: eigenvalue {values[0]}")
        self.values = values.clamp(min=0)
        self.test = (k_test.double() / len(k_train)) @ self.vectors

    def curves(
        self,
        clean: Float[Tensor, "n k"],
        clean_test: Float[Tensor, "m k"],
        times: Float[Tensor, " times"],
    ) -> tuple[Float[Tensor, " times"], Float[Tensor, " times"]]:
        r"""Bias and variance: the expected risk of $A(t)\tilde Y/s$ is $B(t)+N(\rho)V(t)$, exactly.

        $B=\frac1m\|A(t)Y-Y_{test}\|_F^2$ and $V=\frac1m\|A(t)\|_F^2$.

        Args:
            clean: centred one-hot labels Y, without noise.
            clean_test: those of the test rows.
            times: t ≥ 0.

        Raises:
            ValueError: for a negative time.
        """
        filters = self._test_filter(times)
        coefficients = self.vectors.T @ clean.double()
        missed = [
            (self.test @ (weights[:, None] * coefficients) - clean_test).square().sum()
            for weights in filters
        ]
        variance = filters.square() @ self.test.square().sum(0)
        return torch.stack(missed) / len(self.test), variance / len(self.test)

    def predict(
        self,
        targets: Float[Tensor, "*batch n k"],
        times: Float[Tensor, " times"],
        dtype: torch.dtype = torch.float64,
    ) -> Float[Tensor, "*batch times m k"]:
        r"""Test outputs $A(t)\tilde Y$ for many label vectors at once.

        Args:
            targets: centred one-hot labels as given; leading axes may be draws and rates.
            times: t ≥ 0.
            dtype: of the large products; single precision is enough for classes.

        Raises:
            ValueError: for a negative time.
        """
        return self._outputs(self.test, targets, self._test_filter(times), dtype)

    def fitted(
        self,
        targets: Float[Tensor, "*batch n k"],
        times: Float[Tensor, " times"],
        dtype: torch.dtype = torch.float64,
    ) -> Float[Tensor, "*batch times n k"]:
        r"""Training outputs $F(t)=U(I-e^{-\Lambda t})U^\top\tilde Y$; arguments as `predict`."""
        return self._outputs(self.vectors, targets, self._train_filter(times), dtype)

    def self_influence(self, times: Float[Tensor, " times"]) -> Float[Tensor, " times"]:
        r"""$h(t)=\frac1n\sum_k(1-e^{-\lambda_kt})$: what an example writes into its own prediction.

        Args:
            times: t ≥ 0.

        Raises:
            ValueError: for a negative time.
        """
        return self._train_filter(times).mean(1)

    def _outputs(
        self, basis: Tensor, targets: Tensor, filters: Tensor, dtype: torch.dtype
    ) -> Tensor:
        *batch, _, k = targets.shape
        flat = targets.double().movedim(-2, 0).flatten(1)  # [n, batch · k]
        coefficients = self.vectors.T @ flat
        rows = basis.to(dtype)
        outputs = torch.stack(
            [rows @ (weights[:, None] * coefficients).to(dtype) for weights in filters]
        )
        return outputs.unflatten(2, (*batch, k)).movedim((0, 1), (-3, -2))

    def _train_filter(self, times: Tensor) -> Float[Tensor, "times n"]:
        if not bool((times >= 0).all()):
            raise ValueError(f"times must not be negative, got {times.min()}")
        return -torch.expm1(-self.values * times.double()[:, None])

    def _test_filter(self, times: Tensor) -> Float[Tensor, "times n"]:
        """(1 − e^{−λt}) / λ, and its limit t where λ is 0."""
        small = self.values < 1e-300
        ratio = self._train_filter(times) / torch.where(small, 1.0, self.values)
        return torch.where(small, times.double()[:, None], ratio)
