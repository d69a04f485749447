r"""Adam and its relatives as one optimiser: a moving average divided by a scaling.

$v_{t+1}=(1-\gamma_t)v_t+\gamma_tg_t$, $u_{t+1}=h_t(g_0,\dots,g_t)$,
$x_{t+1}=x_t-\eta_t\,v_{t+1}/(\sqrt{u_{t+1}}+G_0)$: no bias correction anywhere.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from toolkit.optimization.moving_average.estimator import check_gamma

RULES = ("shb", "adam", "amsgrad", "adafom", "adabound", "adam_plus")
INITS = ("first", "zero")


def check_rule(
    rule: str,
    beta2: float,
    G0: float,
    bounds: tuple[float, float] | None,
    init: str,
) -> None:
    r"""Refuse a rule whose scaling would not stay within $0<c_l\le s\le c_u$.

    Raises:
        ValueError: for an unknown rule or initial state, `beta2` outside [0, 1), `G0` ≤ 0 where
            $u$ can be 0, or `bounds` that are missing, not positive or reversed.
    """
    for name, given, allowed in (("rule", rule, RULES), ("init", init, INITS)):
        if given not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {given!r}")
    if not 0 <= beta2 < 1:
        raise ValueError(f"beta2 must lie in [0, 1), got {beta2}")
    if rule == "adabound":
        if bounds is None or not 0 < bounds[0] <= bounds[1]:
            raise ValueError(f"adabound needs bounds (c_l, c_u) with 0 < c_l <= c_u, got {bounds}")
    elif rule != "shb" and not G0 > 0:
        raise ValueError(f"u can be 0 under {rule}: G0 must be positive, got {G0}")


class AdamFamily(Optimizer):
    r"""SHB, Adam, AMSGrad, AdaFom, AdaBound and Adam⁺, with the weight $\gamma$ of the new sample.

    Guo et al., arXiv:2104.14840, the Adam-style algorithm. The scaling
    $s=1/(\sqrt u+G_0)$ takes its $u$ from the rule:

    - `"shb"`: stochastic heavy ball, $s=1$;
    - `"adam"`: $u\leftarrow\beta_2u+(1-\beta_2)g^2$;
    - `"amsgrad"`: the running maximum of that;
    - `"adafom"`: $u=\frac1{t+1}\sum_{i\le t}g_i^2$;
    - `"adabound"`: Adam's $u$ clipped to $[c_u^{-2},c_l^{-2}]$, with $G_0=0$;
    - `"adam_plus"`: $u=\|v_{t+1}\|$, one number for all parameters of a group.

    Learning rate and weight may change from step to step: `group["lr"]`, `group["gamma"]`.

    Args:
        params: as in any torch optimiser.
        lr: $\eta>0$.
        gamma: $\gamma\in(0,1]$; torch's `beta1` is $1-\gamma$.
        rule: of the scaling.
        beta2: weight of the old $u$ (adam, amsgrad, adabound).
        G0: $G_0$, added to $\sqrt u$.
        bounds: $(c_l,c_u)$ of adabound.
        init: `"first"` starts the average at $v_1=g_0$, `"zero"` at 0.
        foreach: all tensors of a group in one call of each kernel; False loops over them.

    Raises:
        ValueError: for a rate ≤ 0, or as `check_gamma` and `check_rule`.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float,
        gamma: float,
        *,
        rule: str = "adam",
        beta2: float = 0.999,
        G0: float = 1e-8,
        bounds: tuple[float, float] | None = None,
        init: str = "first",
        foreach: bool = True,
    ) -> None:
        if not lr > 0:
            raise ValueError(f"lr must be positive, got {lr}")
        check_gamma(gamma)
        check_rule(rule, beta2, G0, bounds, init)
        defaults = {
            "lr": lr,
            "gamma": gamma,
            "rule": rule,
            "beta2": beta2,
            "G0": G0,
            "bounds": bounds,
            "init": init,
            "foreach": foreach,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one step.

        Args:
            closure: evaluates the loss again, with gradients.

        Raises:
            ValueError: if a group's `gamma` was set outside (0, 1].
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            check_gamma(group["gamma"])
            params = [p for p in group["params"] if p.grad is not None]
            grads = [p.grad for p in params]
            for p, g in zip(params, grads, strict=True):
                if not self.state[p]:
                    self._start(self.state[p], p, g, group)
            if group["foreach"] or group["rule"] == "adam_plus":  # its norm joins all tensors
                self._update(params, grads, group)
            else:
                for p, g in zip(params, grads, strict=True):
                    self._update([p], [g], group)
        return loss

    @torch.no_grad()
    def scaling_range(self) -> tuple[float, float]:
        r"""Smallest and largest scaling $s_{t,i}$ of the last step, so that $c_l\leq s\leq c_u$.

        Raises:
            ValueError: before the first step.
        """
        scales = []
        for group in self.param_groups:
            for p in group["params"]:
                if self.state[p]:
                    scales.append(self._scaling(self.state[p], group))
        if not scales:
            raise ValueError("no step has been taken yet")
        return min(float(s.min()) for s in scales), max(float(s.max()) for s in scales)

    def _start(self, state: dict, p: Tensor, g: Tensor, group: dict) -> None:
        state["step"] = 0
        state["v"] = g.clone() if group["init"] == "first" else torch.zeros_like(p)
        if group["rule"] == "adam_plus":
            state["u"] = torch.zeros((), dtype=p.dtype, device=p.device)
        elif group["rule"] != "shb":
            state["u"] = torch.zeros_like(p)
        if group["rule"] == "amsgrad":
            state["largest"] = torch.zeros_like(p)

    def _update(self, params: list[Tensor], grads: list[Any], group: dict) -> None:
        if not params:
            return
        states = [self.state[p] for p in params]
        v = [state["v"] for state in states]
        torch._foreach_lerp_(v, grads, group["gamma"])
        for state in states:
            state["step"] += 1
        if group["rule"] == "shb":
            torch._foreach_add_(params, v, alpha=-group["lr"])
            return
        if group["rule"] == "adam_plus":
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(v)))
            for state in states:
                state["u"] = norm
            scale = 1 / (norm.sqrt() + group["G0"])
            torch._foreach_add_(params, torch._foreach_mul(v, scale), alpha=-group["lr"])
            return
        u = self._second_moment(states, grads, group)
        if group["rule"] == "adabound":
            low, high = group["bounds"]
            u = list(torch._foreach_clamp_min(u, high**-2))
            torch._foreach_clamp_max_(u, low**-2)
            root = torch._foreach_sqrt(u)
        else:
            root = torch._foreach_sqrt(u)
            torch._foreach_add_(root, group["G0"])
        torch._foreach_addcdiv_(params, v, root, value=-group["lr"])

    def _second_moment(self, states: list[dict], grads: list[Tensor], group: dict) -> list[Tensor]:
        u = [state["u"] for state in states]
        old = group["beta2"]
        if group["rule"] == "adafom":  # the plain mean is an average whose weight is 1 / (t + 1)
            old = 1 - 1 / states[0]["step"]
        torch._foreach_mul_(u, old)
        torch._foreach_addcmul_(u, grads, grads, value=1 - old)
        if group["rule"] != "amsgrad":
            return u
        largest = [state["largest"] for state in states]
        torch._foreach_maximum_(largest, u)
        return largest

    def _scaling(self, state: dict, group: dict) -> Tensor:
        if group["rule"] == "shb":
            return torch.ones_like(state["v"])
        if group["rule"] == "adabound":
            low, high = group["bounds"]
            return state["u"].clamp(high**-2, low**-2).rsqrt()
        u = state["largest"] if group["rule"] == "amsgrad" else state["u"]
        return 1 / (u.sqrt() + group["G0"])
