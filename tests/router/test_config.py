"""What may be configured, and what is refused."""

import pytest
from pydantic import ValidationError

from goblet_router.config import RouterSettings
from goblet_shared.members import Member, members_of


def test_members_come_sorted_by_name_and_without_a_trailing_slash() -> None:
    assert members_of({"b": "http://10.0.0.2:80/", "a": "https://[::1]:8443"}) == (
        Member(name="a", url="https://[::1]:8443"),  # type: ignore[arg-type]
        Member(name="b", url="http://10.0.0.2:80"),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    "url",
    [
        "",
        "10.0.0.1:80",
        "ftp://h",
        "http://",
        "http://h:0",
        "http://h:99999",
        "http://h/x",
        "http://h?x",
    ],
)
def test_a_url_that_is_not_a_nodes_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="the URL of node a"):
        RouterSettings.model_validate({"node": {"a": url}})


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(ValidationError, match="leave out the user") as caught:
        RouterSettings.model_validate({"node": {"a": "http://me:hunter2@h:1"}})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "a b", "-a", "a/b", "é", "a" * 64])
def test_a_name_that_is_no_plain_word_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="node name"):
        RouterSettings.model_validate({"node": {name: "http://h:1"}})


@pytest.mark.parametrize(
    "field", [f for f in RouterSettings.model_fields if f.endswith("_seconds")]
)
def test_every_wait_is_a_finite_number_above_zero(field: str) -> None:
    for wrong in (0, -1, "inf", "nan"):
        with pytest.raises(ValidationError):
            RouterSettings.model_validate({field: wrong})


def test_every_setting_explains_itself() -> None:
    for name, field in RouterSettings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name


@pytest.mark.parametrize(
    ("setting", "wrong", "why"),
    [
        ("spread_factor", 0.9, "1 or more, or 0"),
        ("spread_after", 0, "greater than or equal to 1"),
        ("mode", "forward", "'proxy' or 'redirect'"),
        ("workers", 0, "greater than or equal to 1"),
        ("advertise", {"a": "ftp://h"}, "the URL of node a"),
    ],
)
def test_what_makes_no_sense_of_the_data_path_is_refused(
    setting: str, wrong: object, why: str
) -> None:
    with pytest.raises(ValidationError, match=why):
        RouterSettings.model_validate({setting: wrong})


def test_a_spread_can_be_switched_off_or_as_tight_as_the_mean() -> None:
    for factor in (0, 1, 1.0):
        assert RouterSettings(spread_factor=factor).spread_factor == factor
