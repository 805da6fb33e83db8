from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from daemon.settings.units import (
    PositiveDuration,
    Section,
    Size,
    format_duration,
    parse_duration,
    parse_share,
    parse_size,
    written,
)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("500ms", timedelta(milliseconds=500)),
        ("90s", timedelta(seconds=90)),
        ("1.5h", timedelta(minutes=90)),
        (" 2 w ", timedelta(days=14)),
    ],
)
def test_a_duration_is_a_number_and_a_unit(text: str, meant: timedelta) -> None:
    assert parse_duration(text) == meant


@pytest.mark.parametrize(
    "wrong", [5, 5.0, True, None, "5", "-5s", "5 parsecs", "1e3s", "99999999999999w", "9" * 400 + "s"]
)
def test_anything_else_is_no_duration(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"duration|unit"):
        parse_duration(wrong)


@pytest.mark.parametrize(
    ("kind", "nothing"), [(PositiveDuration, "0s"), (PositiveDuration, "0.0001ms"), (Size, "0.4B")]
)
def test_where_none_makes_no_sense_none_is_refused(kind: object, nothing: str) -> None:
    with pytest.raises(ValidationError, match=f"more than 0.*'{nothing}'"):
        TypeAdapter(kind).validate_python(nothing)


@given(st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=3650)))
def test_a_duration_survives_being_written(duration: timedelta) -> None:
    assert parse_duration(format_duration(duration)) == duration


@pytest.mark.parametrize(("written_as", "meant"), [("5%", 0.05), ("0%", 0.0), ("100 %", 1.0), (0.25, 0.25), (1, 1.0)])
def test_a_share_is_a_percentage_or_a_number_up_to_one(written_as: object, meant: float) -> None:
    assert parse_share(written_as) == meant


@pytest.mark.parametrize("wrong", ["120%", "-5%", "nan%", "0.5", True, 5, float("nan"), float("inf"), None])
def test_anything_else_is_no_share(wrong: object) -> None:
    with pytest.raises(ValueError, match="share"):
        parse_share(wrong)


@given(st.integers(min_value=1, max_value=2**53))
def test_a_size_survives_being_written(size: int) -> None:
    adapter = TypeAdapter(Size)
    assert adapter.validate_python(adapter.dump_python(size)) == size


@pytest.mark.parametrize("wrong", [5, True, "5", "5gb", "9" * 400 + "B", None])
def test_anything_else_is_no_size(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"size|unit"):
        parse_size(wrong)


class Oven(Section):
    """For the test below."""

    shelves: int = 3
    fan: bool = False
    rest: timedelta = written("5m", "Not a Duration: shows that defaults are checked.")


def test_yes_is_not_one_and_on_is_not_text() -> None:
    assert Oven.model_validate({"fan": True, "rest": timedelta(1)}).fan
    with pytest.raises(ValidationError, match="true does not fit"):
        Oven.model_validate({"shelves": True, "rest": timedelta(1)})


def test_a_default_that_cannot_be_is_refused_like_a_value() -> None:
    with pytest.raises(ValidationError):
        Oven()
