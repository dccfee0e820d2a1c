"""Parameters of which some are tried only by `make long`, because the others guard the same in most cases."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def some_always(values: Iterable[Any], *always: Any) -> list[Any]:
    """The values as parameters, those that are not in `always` marked long; it must name some of them.

    >>> some_always(["a", "b"], "a")[0]
    'a'
    """
    values = list(values)
    assert always, "none is tried"
    assert all(value in values for value in always), always
    return [value if value in always else _long(value) for value in values]


def _long(value: Any) -> Any:
    values: Collection[Any] = value if isinstance(value, tuple) else (value,)
    return pytest.param(*values, marks=pytest.mark.long)
