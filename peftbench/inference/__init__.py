"""Use of a finished job: class probabilities of new images, or one plain file of weights."""
