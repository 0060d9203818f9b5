"""k-nearest neighbors on frozen features: a baseline without any training (Wu et al., CVPR 2018)."""

from collections.abc import Iterator
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from peftbench.core.fields import AtLeast1, Positive, checked
from peftbench.models.head import Head
from peftbench.models.method import Fitted, Loss, Method
from peftbench.models.plan import Plan, Probe

FLOOR = 0.01  # share of the probability that is spread evenly over the classes, so that its logarithm is finite


class Neighbors(nn.Module):
    """Map features (B, D) to the log shares (B, classes) of the classes among the nearest training features.

    With `labels` of several columns the outputs are the log odds of each label.
    """

    def __init__(self, features: Tensor, labels: Tensor, classes: int, k: int, temperature: float) -> None:
        super().__init__()
        self.k, self.temperature = min(k, len(features)), temperature
        self.features = nn.Parameter(F.normalize(features.float(), dim=1), requires_grad=False)
        self.several = labels.dim() > 1
        votes = labels.float() if self.several else F.one_hot(labels, classes).float()
        self.votes = nn.Parameter(votes, requires_grad=False)  # (n, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, classes)."""
        similarity, nearest = (F.normalize(x.float(), dim=1) @ self.features.T).topk(self.k, dim=1)
        weight = (similarity / self.temperature).softmax(dim=1)  # (B, k)
        share = (weight[:, :, None] * self.votes[nearest]).sum(1)
        even = 0.5 if self.several else 1 / self.votes.shape[1]
        share = (1 - FLOOR) * share + FLOOR * even
        return share.logit() if self.several else share.log()


@checked
class KNN(Method):
    """p(c) is the sum of exp(cos / temperature) over the k nearest training images of class c, over that of all k.

    The nearest are those of the largest cosine similarity of the frozen backbone's features.
    """

    trains: ClassVar[bool] = False
    merges: ClassVar[bool] = False  # there is nothing to merge

    k: AtLeast1 = 20
    temperature: Positive = 0.07

    @property
    def fits_features(self) -> bool:
        """True: the features of all images are computed once."""
        return True

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Return an empty plan."""
        return Plan()

    def fits(self, features: Tensor, labels: Tensor, head: Head, loss: Loss, *, choose: bool) -> Iterator[Fitted]:
        """Yield one classifier; the head is not used."""
        yield Neighbors(features, labels, head.linear.out_features, self.k, self.temperature), {}


plugin = KNN
