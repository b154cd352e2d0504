"""Muon for matrices and convolutions, AdamW for everything else, in one optimiser.

Muon replaces the momentum of a weight matrix by the nearest orthogonal matrix, computed by a
Newton–Schulz iteration: all directions of the update have the same size.

References:
    | Jordan et al. (2024), Muon: an optimizer for hidden layers in neural networks.
    | Loshchilov & Hutter (2019), Decoupled weight decay regularization, arXiv 1711.05101.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from .processes import slice_like, whole

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrix: Tensor, iterations: int = 5) -> Tensor:
    """Approximates `U Vᵀ` of the singular value decomposition `U S Vᵀ` of a matrix.

    The singular values of the result lie between about 0.7 and 1.2.
    """

    a, b, c = NEWTON_SCHULZ
    x = matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x

    return x.mT if matrix.shape[0] > matrix.shape[1] else x


class Muon(torch.optim.Optimizer):
    """Muon for the hidden weights of a network, AdamW for the rest.

    Arguments:
        hidden: Weights of at least two dimensions; dimensions beyond the first are flattened.
        rest: All other parameters.
        rate: The learning rate of the hidden weights.
        adam_rate: The learning rate of the rest.
        momentum: The momentum of the hidden weights (Nesterov).
        betas: The decay rates of AdamW's moments.
        decay: The decoupled weight decay of the hidden weights.
    """

    def __init__(
        self,
        hidden: Iterable[nn.Parameter],
        rest: Iterable[nn.Parameter],
        rate: float = 0.01,
        adam_rate: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        decay: float = 0.0,
    ) -> None:
        groups = [
            {"params": list(hidden), "lr": rate, "kind": "muon", "decay": decay},
            {"params": list(rest), "lr": adam_rate, "kind": "adam", "decay": 0.0},
        ]
        self.momentum, self.betas = momentum, betas
        super().__init__([group for group in groups if group["params"]], {"lr": rate})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            update = self._muon if group["kind"] == "muon" else self._adam
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["decay"])
                    update(parameter, parameter.grad, self.state[parameter], group["lr"])

        return loss

    def _muon(
        self, parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], rate: float
    ) -> None:
        if not state:
            state["momentum"] = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
        state["momentum"].mul_(self.momentum).add_(gradient)
        # The polar factor of a slice is no slice of the polar factor.
        update = whole(gradient + self.momentum * state["momentum"]).flatten(1)
        update = orthogonalise(update)
        rows, columns = update.shape
        parameter.add_(
            slice_like(update.reshape(parameter.shape), parameter),
            alpha=-rate * math.sqrt(max(1, rows / columns)),
        )

    def _adam(
        self, parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], rate: float
    ) -> None:
        if not state:
            state["count"] = torch.zeros(())
            state["first"] = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
            state["second"] = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
        state["count"] += 1
        first, second = self.betas
        state["first"].lerp_(gradient, 1 - first)
        state["second"].lerp_(gradient.square(), 1 - second)
        count = float(state["count"])
        denominator = (state["second"] / (1 - second**count)).sqrt().add_(1e-8)
        parameter.addcdiv_(state["first"], denominator, value=-rate / (1 - first**count))


def split_parameters(network: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Splits a network's parameters into hidden weights and the rest.

    The weights of the first and last layer, of embeddings, biases and gains belong to the rest.
    """

    hidden: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        outer = name.startswith(("first.", "last.", "embedding.")) or ".level." in name
        (rest if outer or parameter.ndim < 2 else hidden).append(parameter)

    return hidden, rest
