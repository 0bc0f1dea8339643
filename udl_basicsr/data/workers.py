"""Many inputs, one function, a progress bar: in this process or in several that are spawned."""
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed

import cv2
import torch
import torch.distributed as dist
from tqdm import tqdm


def start_method() -> str:
    """How loader processes are started, whatever Python's default is: from 3.14 on a fork server.

    A fork is there at once and shares what has been imported, and loader processes never touch the GPU; but it is not
    for a process with the threads of NCCL or gloo. Not ``forkserver``: torch's loader processes end when their parent
    is another one, and theirs is the server, which lives as long as they do, so that they would outlive a training
    that is killed.
    """
    several = dist.is_available() and dist.is_initialized()
    return 'fork' if sys.platform == 'linux' and not several else 'spawn'


def _start_worker() -> None:
    """One thread per process, no reaction to Ctrl-C (the parent stops the work), and no life after the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)

    def follow_parent():
        if parent := multiprocessing.parent_process():
            parent.join()
            os._exit(1)
    threading.Thread(target=follow_parent, daemon=True).start()


class Workers:
    """A pool that starts when it is first needed.

    Args:
        count: Number of processes; 1 computes in this process, which spares the seconds that a worker takes to start.
    """

    def __init__(self, count: int):
        self.count = count
        self.pool = None

    def __enter__(self) -> 'Workers':
        # One thread everywhere, so that sums are taken in the same order whatever the number of processes.
        self.threads = torch.get_num_threads()
        torch.set_num_threads(1)
        return self

    def __exit__(self, *_) -> None:
        torch.set_num_threads(self.threads)
        if self.pool:
            self.pool.shutdown(wait=True, cancel_futures=True)

    def map(self, function: Callable, tasks: list[tuple], label: str) -> list:
        """``[function(*task) for task in tasks]``; the first error stops the rest.

        Args:
            function: Importable from a module, as are its arguments' types.
            tasks: The argument tuples.
            label: What stands before the progress bar, which only a terminal shows.

        Returns:
            The results in the order of the tasks.

        Raises:
            BrokenProcessPool: If a worker process is killed.
        """
        if not tasks:
            return []
        with tqdm(total=len(tasks), desc=label, unit='image', dynamic_ncols=True, disable=None) as bar:
            if self.count <= 1:
                results = []
                for task in tasks:
                    results.append(function(*task))
                    bar.update()
                return results
            try:
                futures = self._submit(function, tasks)
                for future in as_completed(futures):
                    future.result()
                    bar.update()
            except BaseException:
                self._stop()
                raise
            return [future.result() for future in futures]

    def _submit(self, function: Callable, tasks: list[tuple]) -> list:
        if not self.pool:
            self.others = multiprocessing.active_children()
            spawn = multiprocessing.get_context('spawn')
            self.pool = ProcessPoolExecutor(self.count, mp_context=spawn, initializer=_start_worker)
        # The workers start while tasks are submitted, and inherit that Ctrl-C is ignored.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            return [self.pool.submit(function, *task) for task in tasks]
        finally:
            signal.signal(signal.SIGINT, handler)

    def _stop(self) -> None:
        """Ends the workers at once: one that is still importing would take seconds to see that it is not needed."""
        for child in multiprocessing.active_children():
            if child not in self.others:
                child.terminate()
        if self.pool:
            self.pool.shutdown(wait=True, cancel_futures=True)
