"""What augmentation does to a batch, and what it never does to a modality."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from peftbench.core import catalogue, catalogue_files
from peftbench.core.contract import DatasetCard, Preprocessing
from peftbench.data import augmentation
from peftbench.data.augmentation import POLICIES, Policy, augmentation_for, light, medical, policy, policy_name
from peftbench.training.job import run
from tests import studies

PLAIN = Preprocessing(16, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
STILL = Policy(mirror=False, degrees=0, shift=0, zoom=0, brightness=0, contrast=0)


def card(modality: str, *classes: str) -> DatasetCard:
    return DatasetCard("A set", modality, classes or ("a", "b"), "none", "drawn")


def changed(batch: Tensor, how: Policy, preprocessing: Preprocessing = PLAIN, step: int = 0) -> Tensor:
    return medical(batch, 0, step, policy=how, preprocessing=preprocessing)


def test_none_is_none() -> None:
    assert augmentation_for("none", "", PLAIN) is None


def test_light_moves_and_mirrors_each_image_for_itself() -> None:
    """Each is one of the 2 x 5 x 5 that there are: mirrored or not, moved by up to 2 of 16 pixels, edges repeated."""
    batch = torch.rand(8, 3, 16, 16)
    padded = torch.nn.functional.pad(batch, (2, 2, 2, 2), mode="replicate")
    found = light(batch, 0, 0)
    ways = []
    for image, wide in zip(found, padded, strict=True):
        there = [wide[:, y : y + 16, x : x + 16] for y in range(5) for x in range(5)]
        matches = [i for i, one in enumerate([*there, *(t.flip(-1) for t in there)]) if torch.equal(one, image)]
        assert len(matches) == 1
        ways += matches
    assert len(set(ways)) > 4


def test_light_is_drawn_from_seed_and_step() -> None:
    batch = torch.rand(8, 3, 16, 16)
    same = light(batch, 3, 5)
    torch.manual_seed(99)
    assert torch.equal(light(batch, 3, 5), same)
    assert not torch.equal(light(batch, 3, 6), same)
    assert not torch.equal(light(batch, 4, 5), same)


# --- medical ---------------------------------------------------------------------------------------------------------


def test_a_policy_that_allows_nothing_changes_nothing() -> None:
    batch = torch.rand(4, 3, 16, 16)
    assert torch.allclose(changed(batch, STILL), batch, atol=1e-5)


@pytest.mark.parametrize(
    ("allowed", "ways"),
    [
        ({"mirror": True}, [lambda x: x, lambda x: x.flip(-1)]),
        ({"upside_down": True}, [lambda x: x, lambda x: x.flip(-2)]),
        ({"quarter_turns": True}, [lambda x, k=k: torch.rot90(x, k, (-2, -1)) for k in range(4)]),
    ],
)
def test_what_is_allowed_happens_to_some_images_and_nothing_else(
    allowed: dict[str, bool], ways: list[Callable[[Tensor], Tensor]]
) -> None:
    batch = torch.rand(32, 3, 16, 16)
    found = changed(batch, replace(STILL, **allowed))
    matches = [[torch.allclose(way(a), b, atol=1e-4) for way in ways] for a, b in zip(batch, found, strict=True)]
    assert [sum(row) for row in matches] == [1] * 32
    assert np.asarray(matches).any(0).all()


def test_each_image_is_turned_for_itself_and_not_too_far() -> None:
    """A bright spot right of the middle moves along a circle."""
    batch = torch.zeros(64, 3, 65, 65)
    batch[:, :, 31:34, 55:58] = 1
    found = changed(batch, replace(STILL, degrees=10.0))
    y, x = torch.meshgrid(torch.arange(65.0) - 32, torch.arange(65.0) - 32, indexing="ij")
    mass = found[:, 0]
    angle = torch.rad2deg(torch.atan2((mass * y).sum((1, 2)), (mass * x).sum((1, 2))))
    assert angle.abs().max() < 10.5
    assert angle.min() < -5
    assert angle.max() > 5


def test_grey_stays_grey_where_channels_are_standardised_apart() -> None:
    how = Preprocessing(16, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28))
    mean, std = (torch.tensor(v)[:, None, None] for v in (how.mean, how.std))
    grey = torch.rand(8, 1, 16, 16).expand(-1, 3, -1, -1)
    found = changed((grey - mean) / std, POLICIES["ct"], how) * std + mean
    assert (found - found[:, :1]).abs().max() < 1e-5
    assert (found.mean((1, 2, 3)) - grey.mean((1, 2, 3))).abs().max() > 0.02


def test_colors_change_where_the_policy_allows_it() -> None:
    batch = torch.full((8, 3, 16, 16), 0.5)
    found = changed(batch, POLICIES["histology"])
    assert (found[:, 0] - found[:, 1]).abs().amax((1, 2)).max() > 0.01


def test_pixels_stay_between_black_and_white() -> None:
    batch = (torch.rand(16, 3, 16, 16) > 0.5).float()
    found = changed(batch, POLICIES["endoscopy"])
    assert found.min() >= 0
    assert found.max() <= 1


def test_medical_is_drawn_from_seed_and_step() -> None:
    batch = torch.rand(8, 3, 16, 16)
    same = changed(batch, POLICIES["ct"], step=5)
    torch.manual_seed(99)
    assert torch.equal(changed(batch, POLICIES["ct"], step=5), same)
    assert not torch.equal(changed(batch, POLICIES["ct"], step=6), same)


# --- which policy ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("modality", "name"),
    [
        ("colon histology", "histology"),
        ("paediatric chest X-ray", "x-ray"),
        ("lung CT", "ct"),
        ("computed tomography of the chest", "ct"),
        ("optical coherence tomography of the retina", "oct"),
        ("breast ultrasound", "ultrasound"),
        ("blood cell microscopy", "microscopy"),
        ("endoscopic ultrasound", "ultrasound"),
        ("CT of intracranial blood", "ct"),
        ("unknown", "other"),
    ],
)
def test_a_modality_has_its_policy(modality: str, name: str) -> None:
    assert policy_name(card(modality)) == name


def test_every_data_set_of_the_catalogue_has_a_policy_of_its_own() -> None:
    entries = [catalogue.dataset_entry(name) for name in catalogue_files.dataset_names()]
    modalities = {m.modality for e in entries for m in (e.members.values() or [e])}
    assert {m for m in modalities if policy_name(card(m)) == "other"} == set()


def test_nothing_is_mirrored_where_left_and_right_are_classes() -> None:
    name = policy_name(card("abdominal CT, axial", "kidney-left", "kidney-right"))
    assert name == "ct with sides"
    assert not policy(name).mirror
    skin = policy(policy_name(card("dermatoscopy", "left arm", "right arm")))
    assert not skin.mirror | skin.upside_down | skin.quarter_turns  # half a turn changes sides, too
    assert policy("ct").mirror


def test_an_x_ray_is_never_upside_down_and_a_ct_never_colored() -> None:
    assert not POLICIES["x-ray"].upside_down
    assert not POLICIES["x-ray"].quarter_turns
    assert {name for name, how in POLICIES.items() if how.color} == {
        "histology",
        "microscopy",
        "dermatoscopy",
        "endoscopy",
        "fundus",
    }


def test_make_gives_what_was_asked_for() -> None:
    batch = torch.rand(4, 3, 16, 16)
    made = augmentation_for("medical", "ct with sides", PLAIN)
    assert made is not None
    wanted = medical(batch, 1, 2, policy=policy("ct with sides"), preprocessing=PLAIN)
    assert torch.equal(made(batch, 1, 2), wanted)
    assert augmentation_for("light", "", PLAIN) is augmentation.light


# --- in a study ------------------------------------------------------------------------------------------------------


def test_augmentation_is_part_of_a_jobs_identity_unless_there_is_none(tmp_path: Path) -> None:
    images, where = studies.draw(tmp_path / "images", 5), studies.places(tmp_path)
    kinds: tuple[Literal["", "none", "light", "medical"], ...] = ("", "none", "light", "medical")
    jobs = {kind: studies.jobs(studies.small(images, augmentation=kind), where)[0] for kind in kinds}
    assert jobs[""].id == jobs["none"].id
    assert len({job.id for job in jobs.values()}) == 3
    assert {kind: job.policy for kind, job in jobs.items()} == {"": "", "none": "", "light": "", "medical": "other"}
    assert replace(jobs["medical"], policy="ct").id != jobs["medical"].id


def test_a_head_alone_trains_on_images_where_they_change(tmp_path: Path) -> None:
    """Stored features would be those of the unchanged images."""
    images, where = studies.draw(tmp_path / "images", 5), studies.places(tmp_path)
    (job,) = studies.jobs(studies.small(images, augmentation="medical", steps=2, evaluations=1), where)
    found = run(job, where)
    assert found is not None
    assert (found.status, found.recipe["augmentation"]) == ("done", "medical")
    assert not (where.cache / "features").exists()
