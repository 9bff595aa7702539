"""Independent tasks on many processes: of this machine, or of a Dask cluster.

A task is a function of the top level of a module with plain arguments; it leaves its result
on disk, so that doing it again costs nothing. A worker that dies takes at most its present
task with it, which another one does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, Protocol

from osteoprint.errors import InputError

if TYPE_CHECKING:
    from distributed import Client

Task = tuple[Any, ...]
Function = Callable[..., Any]
Done = Callable[[int, Any], None]

# A task that takes its worker with it so many times in a row is itself the cause.
_GIVE_UP_AFTER = 5
_CONNECT_S = 15.0


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Workers(Protocol):
    """Where tasks are done; made by :func:`open_workers`."""

    def run(self, function: Function, tasks: Sequence[Task], done: Done) -> None:
        """Call ``function(*task)`` for every task; ``done(index, result)`` as each ends.

        Raises what a task raises, and RuntimeError where workers die again and again.
        """
        ...


@contextmanager
def open_workers(count: int, dask: str | None = None) -> Iterator[Workers]:
    """Workers to give tasks to.

    Parameters
    ----------
    count : processes on this machine; with one, tasks are done in this process.
    dask : address of a Dask scheduler (``tcp://host:8786``), whose workers are used instead;
        they must see the same files under the same paths.

    Raises
    ------
    InputError : Dask is not installed, or no scheduler answers there.
    """
    if dask is not None:
        client = _client(dask)
        try:
            yield _Dask(client, dask)
        finally:
            client.close()  # type: ignore[no-untyped-call]
    elif count <= 1:
        yield _Here()
    else:
        yield _Processes(count)


class _Here(Workers):
    def run(self, function: Function, tasks: Sequence[Task], done: Done) -> None:
        for index, task in enumerate(tasks):
            done(index, function(*task))


class _Processes(Workers):
    def __init__(self, count: int) -> None:
        self.count = count

    def run(self, function: Function, tasks: Sequence[Task], done: Done) -> None:
        left = dict(enumerate(tasks))
        broken = 0
        while left:
            before = len(left)
            try:
                self._round(function, left, done)
            except BrokenProcessPool:
                broken = broken + 1 if len(left) == before else 0
                if broken >= _GIVE_UP_AFTER:
                    raise RuntimeError(
                        f"worker processes died {broken} times in a row: out of memory?"
                    ) from None

    def _round(self, function: Function, left: dict[int, Task], done: Done) -> None:
        """Do what is left; tasks that end are taken out of it."""
        # Started anew, not forked: numba's threads do not survive a fork.
        context = get_context("spawn")
        count = min(self.count, len(left))
        pool = ProcessPoolExecutor(count, mp_context=context, initializer=_one_thread)
        try:
            futures = {pool.submit(function, *task): index for index, task in left.items()}
            for future in as_completed(futures):
                index = futures.pop(future)
                done(index, future.result())
                del left[index], future  # and with it what it gave
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class _Dask(Workers):
    def __init__(self, client: Client, address: str) -> None:
        self.client = client
        self.address = address

    def run(self, function: Function, tasks: Sequence[Task], done: Done) -> None:
        left = dict(enumerate(tasks))
        lost = 0
        while left:
            before = len(left)
            gone = self._round(function, left, done)
            lost = lost + 1 if gone and len(left) == before else 0
            if lost >= _GIVE_UP_AFTER:
                raise RuntimeError(f"workers of {self.address} die on these tasks: {gone[0]}")

    def _round(self, function: Function, left: dict[int, Task], done: Done) -> list[str]:
        """Do what is left, once; returns what went wrong with workers (not with tasks)."""
        from distributed import KilledWorker, as_completed

        futures = {
            self.client.submit(_with_one_thread, function, task, pure=False): index
            for index, task in left.items()
        }
        gone = []
        for future in as_completed(list(futures)):  # type: ignore[no-untyped-call]
            index = futures[future]
            error = future.exception() if future.status == "error" else None
            if isinstance(error, KilledWorker):
                gone.append(str(error))
                continue
            done(index, future.result())
            # Let go of it, so that a worker's death cannot call for it again.
            future.release()
            del left[index]
        return gone


def _client(address: str) -> Client:
    try:
        from distributed import Client
    except ImportError:
        raise InputError(
            "--dask", "needs Dask, which is not installed", "pip install 'osteoprint[dask]'"
        ) from None
    try:
        return Client(address, timeout=_CONNECT_S)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, TimeoutError) as error:
        raise InputError(
            address,
            f"no Dask scheduler answers there ({type(error).__name__})",
            "start one with 'dask scheduler' and give the address it prints",
        ) from None


def _one_thread() -> None:
    """One process a core, one thread a process: nothing waits for anything."""
    import numba

    numba.set_num_threads(1)


def _with_one_thread(function: Function, task: Task) -> Any:
    _one_thread()
    return function(*task)


def in_order(
    function: Function, tasks: Sequence[Task], count: int, ended: Callable[[int], None]
) -> list[Any]:
    """What each task gives, in the tasks' order, done by `count` processes of this machine.

    ``ended`` is called with how many have ended. Raises as :meth:`Workers.run`.
    """
    results: dict[int, Any] = {}

    def one_done(index: int, result: Any) -> None:
        results[index] = result
        ended(len(results))

    with open_workers(count) as workers:
        workers.run(function, tasks, one_done)
    return [results[index] for index in range(len(tasks))]
