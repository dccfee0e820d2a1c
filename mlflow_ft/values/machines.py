"""Several machines, as the preparation of data and its checks use them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import pyarrow

Handle = Any
"""A value that is on one of the machines."""


class Machines(Protocol):
    """Calls functions on several machines. Values stay where they are made until they are asked for.

    An error of a function is raised by `get`.
    """

    @property
    def size(self) -> int:
        """How many functions run at the same time."""

    def put(self, value: Any) -> Handle:
        """Make a value of this process known on the machines."""

    def run(self, function: Callable[..., Any], *arguments: Any) -> Handle:
        """Call a function on one of the machines and return a handle of its value at once; handles among the
        arguments are replaced by their values."""

    def get(self, handles: Sequence[Handle]) -> list[Any]:
        """Bring values to this process."""

    def flow(
        self,
        pieces: Sequence[Any],
        read: Callable[[Any], Iterable[Any]],
        work: Callable[[Any], Any],
        *,
        files: Sequence[Path] = (),
    ) -> Iterator[Handle]:
        """Read every piece in batches, work on each batch, and yield handles of the results, in order of the batches.

        Only some batches are under way at the same time. A piece may be read again, with the same batches. `files` are
        what is read: machines that do not see them do not read.
        """

    def shared(self, tables: Sequence[Handle], columns: Sequence[str]) -> pyarrow.Table:
        """The rows of Arrow tables of which another row, in any of the tables, has the same values in some columns, of
        whole numbers; in any order, in this process."""
