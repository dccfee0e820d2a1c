from __future__ import annotations

import pytest

from mlflow_ft import errors
from mlflow_ft.errors import LONGEST_BRIEF, SHOWN_PROBLEMS, DataError, FineTuneError, Problem, StoppedError, brief

CODES = {"FollowedError": 0, "RefusedError": 1, "PrunedError": 1, "UndeliveredError": 3}
KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, FineTuneError)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_is_in_the_tree_with_its_exit_code(kind: type[FineTuneError]) -> None:
    [line] = [line for line in str(errors.__doc__).splitlines() if kind.__name__ in line.split()]
    if kind is StoppedError:
        assert [StoppedError(number).exit_code for number in (2, 15)] == [130, 143]
        return
    assert kind("x").exit_code == CODES.get(kind.__name__, 2)
    assert ("exit" not in line) or f"exit {kind.exit_code}:" in line


def test_a_message_shows_its_problems_and_then_the_remedy() -> None:
    problems = [Problem(place="a:1", message="is bad", hint="mend it"), Problem(place="a:2", message="too")]
    error = DataError("2 of 9 rows are bad", problems=problems, hint="remove them")
    assert str(error).splitlines() == ["2 of 9 rows are bad", "  a:1  is bad; mend it", "  a:2  too", "  remove them"]


def test_a_message_stays_bounded_however_many_problems_there_are() -> None:
    problems = [Problem(place=f"a:{line}", message="bad") for line in range(1000)]
    told = str(DataError("1000 rows", problems=problems))
    assert len(told.splitlines()) == SHOWN_PROBLEMS + 2
    assert told.endswith(f"... and {1000 - SHOWN_PROBLEMS} more")
    exactly = str(DataError("8 rows", problems=problems[:SHOWN_PROBLEMS]))
    assert "more" not in exactly


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (ValueError("one\ntwo"), "one"),
        (RuntimeError("Errors in loading:\n\tsize of a\n\n\tkeys of b"), "Errors in loading: size of a; keys of b"),
        (OSError("Make sure that:"), "Make sure that"),
        (KeyError("r"), "KeyError: 'r'"),
        (ValueError(" \n "), "ValueError"),
    ],
)
def test_what_a_library_says_is_never_cut_at_a_colon(error: Exception, wanted: str) -> None:
    assert brief(error) == wanted


def test_what_a_library_says_stays_bounded_and_may_name_its_class() -> None:
    assert len(brief(ValueError("all of:\n" + "x\n" * 10_000))) <= LONGEST_BRIEF + 4
    assert brief(ValueError("one\ntwo"), with_type=True) == "ValueError: one"
