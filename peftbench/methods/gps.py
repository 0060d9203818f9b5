"""GPS: for every neuron train the k inputs with the largest gradient (Zhang et al., CVPR 2024)."""

from typing import ClassVar

from torch import Tensor, nn

from peftbench.core.fields import AtLeast1, checked
from peftbench.errors import JobError, RequestError
from peftbench.methods._stepped import Stepped
from peftbench.models.plan import Plan, Probe


@checked
class GPS(Stepped):
    """Importance is |sum over batches of the gradient| at the pretrained weights; biases of these layers train whole.

    Norms, class token and position embedding stay frozen, so every neuron gets the same number of weights.
    """

    knob: ClassVar[str | None] = "k"

    k: AtLeast1 = 1

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Select weights of every matrix and of the patch kernel."""
        self._refuse_too_many(vit)
        even, odd = probe.estimate("sums")
        entries = {
            name: largest_of_each((even[name].double() + odd[name]).abs().flatten(1), self.k) for name in _matrices(vit)
        }
        return Plan(tune=frozenset(_whole(vit)), entries=entries)

    def count(self, vit: nn.Module) -> int:
        """Return k for each neuron, and the biases."""
        self._refuse_too_many(vit)
        neurons = sum(len(vit.get_parameter(name)) for name in _matrices(vit))
        return self.k * neurons + sum(vit.get_parameter(name).numel() for name in _whole(vit))

    def most(self, vit: nn.Module) -> int:
        """Return the number of inputs of the neuron with the fewest."""
        return min(vit.get_parameter(name)[0].numel() for name in _matrices(vit))

    def _refuse_too_many(self, vit: nn.Module) -> None:
        if self.k > self.most(vit):
            raise RequestError(
                f"gps: k must be at most {self.most(vit)}, the inputs of a neuron of this network, got {self.k}."
            )


def largest_of_each(scores: Tensor, k: int) -> Tensor:
    """Return the ascending flat indices (n k,) of the k largest scores of every row of (n, m), ties to the lower index.

    Raises JobError if any score is not finite.
    """
    if not scores.isfinite().all():
        raise JobError("Some gradients are not finite; try --precision fp32.")
    least = scores.topk(k, dim=1).values[:, -1:]
    above, ties = scores > least, scores == least
    chosen = above | (ties & (ties.cumsum(1) <= k - above.sum(1, keepdim=True)))
    return chosen.flatten().nonzero().flatten()


def _layers(vit: nn.Module) -> list[str]:
    return [name for name, module in vit.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]


def _matrices(vit: nn.Module) -> list[str]:
    return [f"{name}.weight" for name in _layers(vit)]


def _whole(vit: nn.Module) -> list[str]:
    """Return the biases of the same layers, and the LayerScales (DINOv2) as in the authors' code."""
    biases = {f"{name}.bias" for name in _layers(vit)}
    return [name for name, _ in vit.named_parameters() if name in biases or name.endswith(".gamma")]


plugin = GPS
