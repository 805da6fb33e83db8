"""An operator's pattern that would stall ingest is refused with the policy, and an ordinary one is not."""

import pytest
from pydantic import ValidationError

from daemon.policy.schema import Policy
from daemon.settings.patterns import stalls_on


@pytest.mark.parametrize(
    "pattern",
    [r"(a+)+$", r"(\w+\s?)*x$", r"<(\d+,?)+>", r"(foo|foo)+$", r"(a|aa)+$", r"^(?:https?://\S+\s*)+$", r".*.*.*x"],
)
def test_a_pattern_whose_time_explodes_is_found(pattern: str) -> None:
    assert stalls_on(pattern) is not None


@pytest.mark.parametrize(
    "pattern",
    [r"[\w.]+@\w+\.com", r"\b\d{3}-\d{2}-\d{4}\b", r"[A-Z]{2}\d{6,8}", r"(?:[a-z]+\.)+com", r"(?:a++)++b", r"foo.*bar"],
)
def test_an_ordinary_pattern_is_not(pattern: str) -> None:
    assert stalls_on(pattern) is None


@pytest.mark.parametrize("section", [{"scrub_patterns": {"id": "(a+)+$"}}, {"quality": {"must_match": "(a+)+$"}}])
def test_a_policy_with_such_a_pattern_is_refused(section: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="takes too long on a text with"):
        Policy.model_validate({"records": section})
