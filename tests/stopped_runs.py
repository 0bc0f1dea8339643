"""Runs that are stopped at an iteration, or run beside the test."""
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from udl_basicsr.models.step import StepModel
from udl_basicsr.training import launch, loop, stages


def train(project, stage, *force, **kwargs):
    parsed = project.parse(stage, *force, **kwargs)
    stages.train(parsed, 'the command')
    return parsed


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


class Child:
    """A command line in a process of its own, forked: what the test has patched is patched there too."""

    def __init__(self, project, *argv, is_train=True, sigint=signal.default_int_handler, **environment):
        self.output = project.root / f'output_{environment.get("RANK", "")}.txt'
        self.process = multiprocessing.get_context('fork').Process(
            target=self._run, args=(project.root, argv, is_train, sigint, environment))
        self.process.start()

    def _run(self, root, argv, is_train, sigint, environment):
        os.environ.update(environment)
        with open(self.output, 'w') as file:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
        signal.signal(signal.SIGINT, sigint)  # pytest itself may have been started with SIGINT ignored
        sys.stdout, sys.stderr = (os.fdopen(number, 'w', 1, closefd=False) for number in (1, 2))
        sys.argv = ['train.py', *argv]
        sys.exit(launch.run(stages.train if is_train else lambda parsed, _: loop.test(parsed), is_train, root))

    def wait_for(self, file):
        end = time.monotonic() + 100
        while not file.exists():
            assert self.process.is_alive(), self.text()
            assert time.monotonic() < end, self.text()
            time.sleep(0.01)
        file.unlink()

    def stop(self, number) -> int:
        """Sends a signal; returns the exit status."""
        os.kill(self.process.pid, number)
        return self.wait()

    def wait(self) -> int:
        self.process.join(100)
        if self.process.is_alive():
            self.process.kill()
        return self.process.exitcode

    def text(self) -> str:
        return self.output.read_text()


@pytest.fixture(autouse=True)
def _ctrl_c():
    """As in a terminal; where the tests were started with ``nohup ... &``, Ctrl-C is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
