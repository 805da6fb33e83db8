"""A few stories of each kind; `make test-faults` tells hundreds."""

import pytest

from tests.faults.machine import Machine, OnDisk, tell_stories


@pytest.mark.parametrize(("machine", "stories"), [(Machine, 12), (OnDisk, 3)])
def test_no_story_loses_or_repeats_anything(machine: type[Machine], stories: int) -> None:
    assert tell_stories(machine, stories=stories, steps=20, seed=1) > 0
