"""`peftbench plan`: durations in fitting units, and the command that measures what is unknown."""

from __future__ import annotations

import pytest

from peftbench.cli.plan import duration, measure_command
from peftbench.core.spec import Study
from tests import studies


def test_the_command_measures_the_methods_of_unknown_duration() -> None:
    jobs = [{"method": name, "seconds": None, "backbone": "clip_vit_b16"} for name in ("linear", "lora")]
    study = studies.study(methods=("lora[alpha=16]", "full"), ratios=("1%",), image_size=112)
    command = "peftbench measure --methods 'lora[alpha=16]' --ratios 1% --backbone clip_vit_b16@random --image-size 112"
    assert measure_command(jobs, study) == command
    assert "--methods linear,lora --backbone" in measure_command(jobs, Study())
    assert measure_command(jobs, Study(precision="fp32", threads=2)).endswith(" --precision fp32 --threads 2")
    baseline = {**jobs[0], "method": "linear (random weights)", "seconds": None}
    assert "--methods linear --backbone" in measure_command([baseline], Study())


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0 s"), (119, "119 s"), (600, "10 min"), (9000, "2.5 h")])
def test_a_duration_has_a_fitting_unit(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown
