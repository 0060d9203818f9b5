"""Fit a classifier of stored features without the recipe's steps: k-nearest neighbors, L-BFGS."""

from __future__ import annotations

from dataclasses import replace

from peftbench.core.recipe import Recipe
from peftbench.data.batches import FeatureBatches
from peftbench.errors import PluginError
from peftbench.models.method import Method
from peftbench.profiling.clock import Clock
from peftbench.training.loop import Progress, evaluate
from peftbench.training.optimizer import make_loss
from peftbench.training.trainee import Trainee


def fit_features(method: Method, trainee: Trainee, recipe: Recipe) -> Progress:
    """Evaluate every classifier that the method fits; the selection rules choose among them as among steps.

    Raises PluginError if the plan changes the backbone.
    """
    task, progress, clock = trainee.task, Progress(), Clock()
    if not isinstance(task.train, FeatureBatches):
        raise PluginError(f"{type(method).__name__} fits frozen features, but its plan changes the backbone.")
    loss = make_loss(recipe, task.labels, task.classes)
    fits = method.fits(task.train.features, task.labels, trainee.model.head, loss, choose="val" in task.parts)
    for number, (classifier, facts) in enumerate(fits, start=1):
        passed = clock.lap()
        progress.step = number
        progress.train_seconds += passed.wall
        progress.train_cpu_seconds += passed.cpu
        learner = replace(trainee.learner, model=classifier)
        evaluate(learner, task, recipe, progress, {"step": number, **facts})
        clock.lap()  # the evaluation
    return progress
