"""What is resampled: groups when there are enough, queries otherwise, and always said in words."""

import numpy as np
import pytest

from ssl_retrieval.errors import UserError
from ssl_retrieval.resampling import ENOUGH_GROUPS, StatisticsOptions, choose
from ssl_retrieval.types import IntArray


def pairs(num_groups: int) -> IntArray:
    return np.repeat(np.arange(num_groups), 2)


def test_many_shared_classes_are_resampled() -> None:
    decided = choose(pairs(ENOUGH_GROUPS), np.ones(2 * ENOUGH_GROUPS), "category")
    assert decided.groups is not None
    assert decided.num_units == ENOUGH_GROUPS
    assert decided.words == "resample the 20 classes with all their queries"
    assert decided.note == ""
    assert "objects" in choose(pairs(50), np.ones(100), "instance").words


def test_few_classes_leave_the_queries_and_a_note() -> None:
    decided = choose(pairs(ENOUGH_GROUPS - 1), np.ones(2 * ENOUGH_GROUPS - 2), "category")
    assert decided.groups is None
    assert decided.words == "resample the 38 queries"
    assert "19 classes, too few" in decided.note
    assert "speak about these only" in decided.note
    assert "1 object, too few" in choose(pairs(1), np.ones(2), "instance").note


def test_queries_of_their_own_need_no_note() -> None:
    decided = choose(np.arange(30), np.ones(30), "instance")
    assert (decided.groups, decided.num_units, decided.note) == (None, 30, "")


def test_queries_that_find_nothing_do_not_count() -> None:
    """Twenty-five classes, of which only ten have anything to find."""
    values = np.where(np.arange(50) < 20, 1.0, np.nan)
    decided = choose(pairs(25), values, "category")
    assert decided.groups is None
    assert "10 classes" in decided.note
    assert decided.num_units == 20


def test_the_choice_can_be_forced() -> None:
    few, many = pairs(3), pairs(40)
    assert choose(few, np.ones(6), "category", "groups").num_units == 3
    assert choose(many, np.ones(80), "category", "queries").groups is None
    assert choose(many, np.ones(80), "category", "queries").note == ""
    assert choose(pairs(1), np.ones(2), "category", "groups").groups is None


def test_unknown_groups_are_queries_unless_groups_are_asked_for() -> None:
    assert choose(None, np.ones(7), "category").words == "resample the 7 queries"
    with pytest.raises(UserError, match=r"does not say which class a query belongs to; evaluate again"):
        choose(None, np.ones(7), "category", "groups")


def test_unknown_options_are_refused_in_one_line() -> None:
    StatisticsOptions().check()
    with pytest.raises(UserError, match=r"statistics\.resample='classes': use auto, queries or groups"):
        StatisticsOptions(resample="classes").check()
    with pytest.raises(UserError, match=r"statistics\.test='t': use sign_flip or bootstrap"):
        StatisticsOptions(test="t").check()
