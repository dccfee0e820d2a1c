"""The data engine `ray`: sources read and worked on as a data set of Ray Data, single functions as tasks.

Values stay in the object store of the cluster, which spills to disk.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray import cloudpickle
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.exceptions import RayTaskError

from mlflow_ft import Handle, Machines
from mlflow_ft_ray.engine import cluster

VALUE = "mlflow_ft_value"
"""The column of a block that holds pickled values."""
READER = 0.5
"""CPUs of a task that reads: less than one that works, so that Ray does not make one task of both."""
A_LITTLE = 0.001
"""Of the resource that names a machine, and that each machine has once."""
GROUPED = 10_000_000
"""Rows of which one task finds those that meet: 240 MB; more are shuffled."""


class Tasks:
    """Machines (`mlflow_ft.Machines`) that are those of a Ray cluster. What a lost machine did is done again."""

    def __init__(self) -> None:
        self._cpus = 0 if cluster.INSIDE in os.environ else 1  # the workers of a training have taken the CPUs
        self._call = ray.remote(_call).options(num_cpus=self._cpus)

    @property
    def size(self) -> int:
        """The CPUs of the cluster."""
        return int(ray.cluster_resources().get("CPU", 1))

    def put(self, value: Any) -> Handle:
        """Put a value into the object store."""
        return ray.put(value)

    def run(self, function: Callable[..., Any], *arguments: Any) -> Handle:
        """Start a task."""
        return self._call.remote(function, *arguments)

    def get(self, handles: Sequence[Handle]) -> list[Any]:
        """Bring values here; an error of a task is raised as it was there."""
        with _as_it_was_there():
            return [_value(value) for value in ray.get(list(handles))]

    def flow(
        self,
        pieces: Sequence[Any],
        read: Callable[[Any], Iterable[Any]],
        work: Callable[[Any], Any],
        *,
        files: Sequence[Path] = (),
    ) -> Iterator[Handle]:
        """Read and work on pieces as one data set, whose blocks hold a batch each.

        If a machine does not see the files, this one reads them.
        """
        functions = ray.put((read, work))
        here = {f"node:{ray.util.get_node_ip_address()}": A_LITTLE} if cluster.blind(files) else None
        source = ray.data.read_datasource(
            Pieces(pieces, functions),
            override_num_blocks=len(pieces),
            num_cpus=READER * self._cpus,
            resources=here,
        )
        _quiet(source)
        source.context.execution_options.preserve_order = True
        source.context.target_max_block_size = 1  # a block for each batch
        worked = source.map_batches(
            _work, batch_size=1, batch_format="pyarrow", fn_args=[functions], num_cpus=self._cpus
        )
        with _as_it_was_there():
            for bundle in worked.iter_internal_ref_bundles():
                for entry in bundle.blocks:
                    yield entry.ref

    def shared(self, tables: Sequence[Handle], columns: Sequence[str]) -> pa.Table:
        """Shuffle the rows by these columns, and keep those that meet another one."""
        count = sum(self.get([self.run(len, table) for table in tables]))
        if count <= GROUPED:
            [found] = self.get([self.run(_met_of, columns, *tables)])
            return found
        rows = ray.data.from_arrow_refs(list(tables))
        _quiet(rows)
        met = rows.repartition(-(-count // GROUPED), keys=list(columns)).map_batches(
            _met, batch_size=None, batch_format="pyarrow", fn_args=[tuple(columns)], num_cpus=self._cpus
        )
        with _as_it_was_there():
            blocks = [ray.get(entry.ref) for bundle in met.iter_internal_ref_bundles() for entry in bundle.blocks]
        return pa.concat_tables(blocks)


def _quiet(data: ray.data.Dataset) -> None:
    data.context.enable_progress_bars = False
    data.context.print_on_execution_start = False


@contextmanager
def _as_it_was_there() -> Iterator[None]:
    """Raise the error of a task as it was raised there."""
    try:
        yield
    except RayTaskError as error:
        cause: BaseException | None = error
        while isinstance(cause, RayTaskError):
            cause = cause.cause
        if isinstance(cause, Exception):
            raise cause from error
        raise


class Pieces(Datasource):
    """Pieces, each read by a task; a block holds a batch."""

    def __init__(self, pieces: Sequence[Any], functions: Any) -> None:
        super().__init__()
        self._pieces, self._functions = pieces, functions

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown before the pieces are read."""
        return None

    def get_read_tasks(self, parallelism: int, *given: Any, **named: Any) -> list[ReadTask]:
        """A task for each piece."""
        unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(_Reading(piece, self._functions), unknown) for piece in self._pieces]


class _Reading:
    def __init__(self, piece: Any, functions: Any) -> None:
        self._piece, self._functions = piece, functions

    def __call__(self) -> Iterator[pa.Table]:
        read, _ = ray.get(self._functions)
        return (_block(batch) for batch in read(self._piece))


def _work(block: pa.Table, functions: Any) -> pa.Table:
    _, work = ray.get(functions)
    return _block(work(_value(block)))


def _met(rows: pa.Table, columns: Sequence[str]) -> pa.Table:
    """The rows whose values in the columns another row has too."""
    import numpy as np

    if not rows.num_rows:
        return rows
    values = [rows.column(name).to_numpy() for name in columns]
    order = np.lexsort(values)
    first = np.ones(len(order) + 1, bool)
    first[1:-1] = np.any([value[order][1:] != value[order][:-1] for value in values], axis=0)
    return rows.take(order[~(first[:-1] & first[1:])])


def _met_of(columns: Sequence[str], *tables: pa.Table) -> pa.Table:
    return _met(pa.concat_tables(tables), columns)


def _block(value: Any) -> pa.Table:
    return pa.table({VALUE: pa.array([cloudpickle.dumps(value, protocol=5)], pa.large_binary())})


def _value(value: Any) -> Any:
    """The value in a block of `_block`; any other value itself."""
    if isinstance(value, pa.Table) and value.column_names == [VALUE]:
        return cloudpickle.loads(value.column(VALUE)[0].as_buffer())
    return value


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*map(_value, arguments))


@contextmanager
def machines() -> Iterator[Machines]:
    """The machines of the cluster, as long as the connection lasts.

    Raises:
        ConfigError: no cluster answers.
    """
    with cluster.connected():
        yield Tasks()
