"""Linear probe: a frozen backbone and a trained head."""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from peftbench.core.fields import Positive, checked
from peftbench.models.head import Head
from peftbench.models.method import Fitted, Loss, Method
from peftbench.models.plan import Plan, Probe

GRID = tuple(10.0**e for e in range(1, -7, -1))  # penalties to choose from, strong to weak
ITERATIONS = 1000  # of L-BFGS for each penalty, at most
GRADIENT = 1e-7  # largest entry of the gradient at which a solution counts as converged


@checked
class Linear(Method):
    """Only the head trains: by the recipe's steps, or by L-BFGS on the frozen features until it converges.

    L-BFGS minimizes the mean loss + l2 / 2 |W|^2 and needs no learning rate. Without a given `l2` it is chosen from
    GRID by the recipe's selection rule; without a validation part it is 1 / n for n training images, the default of
    scikit-learn.
    """

    solver: Literal["recipe", "lbfgs"] = "recipe"
    l2: Positive | None = None  # lbfgs: the weight of the penalty

    @property
    def fits_features(self) -> bool:
        """Whether L-BFGS replaces the recipe's steps."""
        return self.solver == "lbfgs"

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Return an empty plan."""
        return Plan()

    def fits(self, features: Tensor, labels: Tensor, head: Head, loss: Loss, *, choose: bool) -> Iterator[Fitted]:
        """Fit the head with each penalty, from strong to weak, and yield it; 1 / n comes last."""
        last = self.l2 or 1 / len(labels)
        inputs = head.fit_norm(features).double()
        for l2 in (*(GRID if choose and self.l2 is None else ()), last):
            yield head, {"l2": l2, "train_loss": minimize(head.linear, inputs, labels, loss, l2)}


def minimize(linear: nn.Linear, inputs: Tensor, labels: Tensor, loss: Loss, l2: float) -> float:
    """Set `linear` to the minimum of the mean loss on inputs (n, D) + l2 / 2 |W|^2; return the mean loss there.

    It starts from the current values and computes in float64.
    """
    weight, bias = (t.detach().double().requires_grad_() for t in (linear.weight, linear.bias))
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=ITERATIONS,
        history_size=10,
        tolerance_grad=GRADIENT,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = loss(inputs @ weight.T + bias, labels) + l2 / 2 * weight.square().sum()
        total.backward()
        return total

    optimizer.step(closure)
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
        return float(loss(inputs @ weight.T + bias, labels))


plugin = Linear
