"""Runs that are stopped at an iteration, or run beside the test."""
import os
import signal
import time
from pathlib import Path

import pytest
from forked import Forked, command_line

from udl_basicsr.models.step import StepModel


def run_of(project, name) -> Path:
    return project.root / 'experiments' / name


@pytest.fixture
def at_iteration(monkeypatch):
    """Does something in the middle of a step, once."""

    def arrange(number, action):
        step = StepModel.optimize_parameters

        def stepping(self, current_iter):
            if current_iter == number:
                action()
            step(self, current_iter)

        monkeypatch.setattr(StepModel, 'optimize_parameters', stepping)

    yield arrange
    monkeypatch.undo()


class Child(Forked):
    """A command line in a process of its own."""

    def __init__(self, project, *argv, is_train=True, **environment):
        super().__init__(command_line, argv, is_train, project.root, cwd=project.root, **environment)

    def wait_for(self, file):
        end = time.monotonic() + 100
        while not file.exists():
            assert self.process.is_alive(), self.stderr
            assert time.monotonic() < end, self.stderr
            time.sleep(0.01)
        file.unlink()

    def stop(self, number) -> int:
        """Sends a signal; returns the exit status."""
        os.kill(self.process.pid, number)
        return self.wait(100)


@pytest.fixture(autouse=True)
def _ctrl_c():
    """As in a terminal; where the tests were started with ``nohup ... &``, Ctrl-C is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
