"""Processes that work for another one, the runs of a comparison and torchrun's: they end with it, and in order.

A process that ends as it should stops its children itself. One that is killed cannot, and they would train on, hold
the locks of their folders, and be in the way when it is started again.
"""
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import wait

GRACE = 300.
"""Seconds in which a child may finish its step and save before it is killed."""
TORCHRUN_GRACE = 30.
"""The same for a process of torchrun, as long as torchrun itself waits after a signal."""
_STARTED_BY = os.getppid()  # udl_basicsr imports this before torch, whose import takes seconds


def end_with_parent(grace: float = GRACE) -> None:
    """To be called first of all in a child of ``multiprocessing``: SIGTERM when its parent has ended, however it did.

    It listens to the pipe that ``multiprocessing`` keeps between the two, which the system closes with the parent.
    Linux has PR_SET_PDEATHSIG for this, but to it the parent is the fork server, which outlives the process that asked
    it for children for as long as any of these live.

    Ctrl-C is ignored from here on: a terminal sends it to parent and children alike, and the parent then stops them,
    which would be a second signal and so the end without saving.

    Args:
        grace (float): Seconds from SIGTERM to SIGKILL.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_after(lambda: wait([parent.sentinel]), grace)


def end_with_torchrun(grace: float = TORCHRUN_GRACE, every: float = 0.1) -> None:
    """To be called in a process that torchrun has started: SIGTERM when torchrun has ended, however it did.

    No pipe leads there, but the system gives the process another parent, except on Windows.

    Args:
        grace (float): Seconds from SIGTERM to SIGKILL.
        every (float): Seconds from one look to the next.
    """
    def ended() -> None:
        while os.getppid() == _STARTED_BY:
            time.sleep(every)

    _end_after(ended, grace)


def _end_after(ended: Callable[[], object], grace: float) -> None:
    def watch() -> None:
        ended()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace)
        os.kill(os.getpid(), getattr(signal, 'SIGKILL', signal.SIGTERM))  # Windows has one way to end a process

    threading.Thread(target=watch, name='ends_with_another', daemon=True).start()
