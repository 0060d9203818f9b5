"""What trains, put together in one place: backbone and head, the method's plan carried out, and the task.

Jobs, `peftbench measure`, `peftbench bench` and the conformance rules all build their networks here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from peftbench.core.contract import Preprocessing
from peftbench.core.recipe import Recipe
from peftbench.data.augmentation import Augment
from peftbench.data.batches import FeatureBatches, ImageBatches, fits_on_device
from peftbench.data.pixel_cache import Data
from peftbench.models import sparse_ways
from peftbench.models.backbone import Network
from peftbench.models.gradient_probe import Batch, GradientProbe
from peftbench.models.head import Classifier, Head
from peftbench.models.plan import Plan, Tuned
from peftbench.profiling import counting, hardware
from peftbench.profiling.counting import Alone, Counted
from peftbench.profiling.hardware import PRECISIONS
from peftbench.storage.checked_tensors import cached
from peftbench.training.loop import Inputs, Learner, Task, forward
from peftbench.training.optimizer import make_loss


def make_classifier(vit: Network, classes: int, recipe: Recipe, seed: int) -> Classifier:
    """Return `vit` with the recipe's head on top, whose first values depend on `seed` alone."""
    return Classifier(vit, Head(vit.num_features, classes, recipe.head, recipe.head_scale, seed))


def make_task(
    data: Data,
    preprocessing: Preprocessing,
    device: str,
    evaluated: Sequence[str],
    augment: Augment | None = None,
    *,
    resident: bool = True,
) -> Task:
    """Return the images and labels of train and of the `evaluated` parts.

    On a GPU the images are moved there once if they fit and `resident` allows it, else batch by batch.
    """
    where = torch.device(device)
    pixels = {part: data.pixels(part) for part in ("train", *evaluated) if data.sizes[part]}
    resident = resident and fits_on_device(sum(raw.nbytes for raw in pixels.values()), where)
    images = {part: ImageBatches(raw, preprocessing, where, resident=resident) for part, raw in pixels.items()}
    parts = {part: (images[part], data.labels[part]) for part in evaluated if part in images}
    labels = torch.from_numpy(data.labels["train"]).to(where)
    return Task(images["train"], labels, parts, len(data.card.classes), augment)


def make_probe(model: Classifier, task: Task, recipe: Recipe, seed: int, cache: Path | None = None) -> GradientProbe:
    """Return gradients of the recipe's loss, without label smoothing, over train in the order of the first epoch.

    Estimates are kept in the folder `cache`, whose name must hold everything that decides them.
    """

    def batches() -> Iterator[Batch]:
        first_epoch = np.random.default_rng([seed, 7, 0]).permutation(len(task.train))
        for index in np.split(first_epoch, range(recipe.batch, len(first_epoch), recipe.batch)):
            yield task.train.batch(index), task.labels[torch.from_numpy(index).to(task.labels.device)]

    loss = make_loss(replace(recipe, label_smoothing=0.0), task.labels, task.classes)
    return GradientProbe(model, batches, loss, PRECISIONS[recipe.precision], cache, seed)


@dataclass(frozen=True)
class Trainee:
    """A classifier whose backbone carries a plan, and the task it trains on."""

    model: Classifier
    tuned: Tuned
    task: Task
    head_only: bool = False  # the task holds stored features of the frozen backbone, and only the head is trained
    ways: Mapping[str, str] = field(default_factory=dict)  # sparse layer -> how its gradient is computed

    @property
    def head(self) -> dict[str, Tensor]:
        """The live tensors of the head, as `head/NAME`."""
        return {f"head/{name}": tensor for name, tensor in self.model.head.state_dict(keep_vars=True).items()}

    @property
    def learner(self) -> Learner:
        """What the training loop trains."""
        if self.head_only:
            return Learner(self.model.head, self.head)
        tensors = {**self.tuned.tensors, **self.head}
        return Learner(self.model, tensors, self.tuned.callback, self.tuned.lr_multipliers, self.ways)

    @property
    def freezes_features(self) -> bool:
        """Whether an image has the same features in every epoch, so that the head can train on stored ones."""
        return self.tuned.plan.empty and self.task.augment is None

    def on_features(self, task: Task) -> Trainee:
        """Return the same trainee with only its head training, on a task of stored features."""
        return replace(self, task=task, head_only=True)


def carry_out(model: Classifier, plan: Plan, task: Task, autocast: torch.dtype | None = None) -> Trainee:
    """Apply `plan` to the backbone of `model`; new tensors are drawn from torch's generator.

    Frozen matrices are stored in the type `autocast`, so that the network is good for passes under it only.
    """
    return Trainee(model, apply_plan(model, plan, autocast), task)


def apply_plan(model: Classifier, plan: Plan, autocast: torch.dtype | None = None) -> Tuned:
    """Apply `plan` as `carry_out` does, without a task to train on."""
    tuned = plan.carry_out(model.vit)
    tuned.cast_frozen(autocast)
    return tuned


def choose_ways(
    trainee: Trainee, recipe: Recipe, cache: Path, pieces: int = 1, former: Mapping[str, str] | None = None
) -> Trainee:
    """Let every sparse layer compute its gradient in the way of `former`, or else in the fastest on this machine.

    Times are taken once for a pattern and kept in the folder `cache`. Batches are cut into `pieces`.
    """
    vit = trainee.model.vit
    if not sparse_ways.patterns(vit):
        return trainee
    images, dtype = -(-recipe.batch // pieces), PRECISIONS[recipe.precision] or torch.float32
    device = next(vit.parameters()).device.type
    machine = hardware.environment(device) | {"threads": torch.get_num_threads()}
    samples = images * cast("Network", vit).patch_embed.num_patches
    ways = former or sparse_ways.choose(vit, samples, dtype, cache, machine)
    sparse_ways.settle(vit, ways)
    return replace(trainee, ways=ways)


def stored_features(model: Classifier, task: Task, recipe: Recipe, cache: Path) -> Task:
    """Return the task with every image replaced by its features, read from the folder `cache` or computed once."""

    def features(part: str, images: Inputs) -> FeatureBatches:
        def compute() -> dict[str, Tensor]:
            return {"features": forward(model.vit, images, PRECISIONS[recipe.precision]).cpu().clone()}

        return FeatureBatches(cached(cache / f"{part}.safetensors", compute)["features"].to(task.labels.device))

    parts = {name: (features(name, images), labels) for name, (images, labels) in task.parts.items()}
    return replace(task, train=features("train", task.train), parts=parts)


def count_step(
    model: Classifier,
    recipe: Recipe,
    side: int,
    device: str = "cpu",
    pixels: int = 0,
    pieces: int = 1,
    *,
    head_only: bool = False,
) -> Counted:
    """Count what a training step on images of `side` px holds and computes; the model may lie on the meta device.

    `pixels` are the bytes of decoded images in memory, apart from the batch. Batches are cut into `pieces`.
    """
    batch = -(-recipe.batch // pieces)
    images = (batch, 3, side, side)
    alone = Alone(model.head, (batch, model.head.linear.in_features)) if head_only else None
    pixels += counting.batch_bytes(alone.batch if alone else images)
    return counting.count(model, images, recipe, device, PRECISIONS[recipe.precision], pixels, alone)
