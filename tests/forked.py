"""Processes that need not import everything anew: forked, so that what a test has patched is patched there too."""
import atexit
import contextlib
import logging
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
from multiprocessing import forkserver
from pathlib import Path

import torch._dynamo  # noqa: F401 - optimisers and DDP do, which takes each process seconds
from basicsr.utils.logger import initialized_logger

from udl_basicsr.cli import main as door
from udl_basicsr.training import launch, loop, stages
from udl_basicsr.utils import plugins


class Forked:
    """A call in a process of its own, in a folder, with variables of its environment, printing to files there."""
    _count = 0

    def __init__(self, call, *args, cwd: Path, sigint=signal.default_int_handler, **environment):
        Forked._count += 1
        self._files = [cwd / f'.forked_{Forked._count}_{stream}' for stream in ('stdout', 'stderr')]
        self.process = multiprocessing.get_context('fork').Process(
            target=self._run, args=(call, args, cwd, sigint, environment))
        self.process.start()

    def _run(self, call, args, cwd, sigint, environment):
        for number, file in enumerate(self._files, 1):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = (os.fdopen(number, 'w', 1, closefd=False) for number in (1, 2))
        logging.getLogger('basicsr').handlers.clear()
        initialized_logger.clear()  # or its stream would be that of the test
        forkserver._forkserver.__init__()  # that of the test would not take this process for its parent
        signal.signal(signal.SIGINT, sigint)  # pytest itself may have been started with SIGINT ignored
        os.chdir(cwd)
        os.environ.update(environment)
        atexit._clear()  # as in a process that begins, and run when it ends, which multiprocessing leaves out
        try:
            sys.exit(call(*args))
        finally:
            atexit._run_exitfuncs()

    def wait(self, seconds: float = 600) -> int:
        """The exit status; -9 where it takes longer than that."""
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        return self.process.exitcode

    @property
    def stdout(self) -> str:
        return self._files[0].read_text(encoding='utf-8')

    @property
    def stderr(self) -> str:
        return self._files[1].read_text(encoding='utf-8')


def forked(call, *args, cwd: Path, **environment) -> subprocess.CompletedProcess:
    """How a call ended, and what it printed."""
    child = Forked(call, *args, cwd=cwd, **environment)
    return subprocess.CompletedProcess(args, child.wait(), child.stdout, child.stderr)


def udl(*argv) -> int:
    """``udl`` with its arguments, and the modules of ``--import`` in the working folder."""
    argv = [str(word) for word in argv]
    plugins.ask_for(plugins.split(argv)[1])
    plugins.load()
    return door.main(argv)


def command_line(argv, is_train: bool = True, root: Path | None = None) -> int:
    """``train.py`` or ``test.py`` with its arguments."""
    action = stages.train if is_train else lambda parsed, _: loop.test(parsed)
    return launch.run(action, is_train, root, argv=[str(word) for word in argv])


def script(path, *argv) -> None:
    """``python path ...``"""
    sys.path.insert(0, str(Path(path).parent.resolve()))
    sys.argv = [str(path), *map(str, argv)]
    runpy.run_path(str(path), run_name='__main__')


@contextlib.contextmanager
def within(seconds: int):
    """A TimeoutError where a block takes longer, and might for ever."""
    def late(*_):
        raise TimeoutError(f'took longer than {seconds} s')

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def ranks(call, *args, cwd: Path) -> tuple[Forked, Forked]:
    """Two processes of one training, as torchrun would start them."""
    found = {'WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(free_port())}
    return tuple(Forked(call, *args, cwd=cwd, RANK=str(rank), LOCAL_RANK=str(rank), **found) for rank in (0, 1))
