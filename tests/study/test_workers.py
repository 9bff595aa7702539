"""Tasks on processes and on Dask: done once, whoever dies."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from osteoprint.errors import InputError
from osteoprint.study.workers import open_workers


def note(folder: str, task: int, deadly: bool) -> int:
    """Leave a trace in a file of its own; if deadly, kill this process the first time."""
    path = Path(folder) / f"{task}-{os.getpid()}"
    first = not list(Path(folder).glob(f"{task}-*"))
    path.write_text("")
    if deadly and first:
        os.kill(os.getpid(), signal.SIGKILL)
    return task * task


def always_deadly() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fails(task: int) -> int:
    raise ValueError(f"task {task} is wrong")


def results(workers, folder: Path, deadly: set[int]) -> dict[int, int]:
    found = {}

    def done(index: int, value: int) -> None:
        assert index not in found
        found[index] = value

    workers.run(note, [(str(folder), n, n in deadly) for n in range(8)], done)
    return found


def test_processes_survive_the_death_of_some(tmp_path):
    with open_workers(2) as workers:
        assert results(workers, tmp_path, {2, 5}) == {n: n * n for n in range(8)}


def test_a_task_that_kills_every_worker_ends_with_a_word():
    with open_workers(2) as workers, pytest.raises(RuntimeError, match="died 5 times"):
        workers.run(always_deadly, [()], lambda *_: None)


@pytest.mark.parametrize("count", [1, 2])
def test_a_tasks_own_error_arrives(count):
    with open_workers(count) as workers, pytest.raises(ValueError, match="task 3 is wrong"):
        workers.run(fails, [(3,)], lambda *_: None)


def test_dask_workers_survive_the_death_of_some(tmp_path):
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50
        ) as cluster,
        open_workers(1, cluster.scheduler_address) as workers,
    ):
        assert results(workers, tmp_path, {2, 5}) == {n: n * n for n in range(8)}
        with pytest.raises(ValueError, match="task 3 is wrong"):
            workers.run(fails, [(3,)], lambda *_: None)


def test_a_missing_scheduler_is_named(monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr("osteoprint.study.workers._CONNECT_S", 0.5)
    with (
        pytest.raises(InputError, match="no Dask scheduler answers"),
        open_workers(1, "tcp://127.0.0.1:9"),
    ):
        pass
    with pytest.raises(InputError, match="no Dask scheduler answers"), open_workers(1, "nonsense"):
        pass
