"""Processes that work for another one, such as the runs of a comparison: they end with it, and in order.

A process that ends as it should stops its children itself. One that is killed cannot, and they would train on, hold
the locks of their folders, and be in the way when it is started again.
"""
import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.connection import wait

GRACE = 300.
"""Seconds in which a child may finish its step and save before it is killed."""


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

    def watch() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace)
        os.kill(os.getpid(), getattr(signal, 'SIGKILL', signal.SIGTERM))  # Windows has one way to end a process

    threading.Thread(target=watch, name='end_with_parent', daemon=True).start()
