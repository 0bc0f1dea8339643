"""A process with its children, started in a group of its own and killed with SIGKILL at a moment of one's choice."""
from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Run:
    """One process with its children, all in a process group and a session of their own."""

    last: Run | None = None

    def __init__(self, command: list[str], folder: Path, output: Path):
        self.output = output
        self.started = time.monotonic()
        environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'PYTHONUNBUFFERED': '1',
                       'PYTHONPATH': os.pathsep.join(filter(None, (str(ROOT), os.environ.get('PYTHONPATH'))))}
        with open(output, 'wb') as file:
            self.process = subprocess.Popen(command, cwd=folder, env=environment, stdout=file,
                                            stderr=subprocess.STDOUT, start_new_session=True)
        Run.last = self

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def ended(self) -> bool:
        return self.process.poll() is not None

    def wait_until(self, seconds: float) -> bool:
        """Whether it still runs then."""
        try:
            self.process.wait(max(seconds - self.seconds, 0))
        except subprocess.TimeoutExpired:
            return True
        return False

    def kill(self) -> None:
        """SIGKILL to the process and all its children."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def kill_parent(self, patience: float) -> float | None:
        """SIGKILL to the process alone. Returns after how many seconds its children had ended, or None if not."""
        self.process.kill()
        self.process.wait()
        begun = time.monotonic()
        while members(self.process.pid):
            if time.monotonic() - begun > patience:
                os.killpg(self.process.pid, signal.SIGKILL)
                return None
            time.sleep(0.1)
        return round(time.monotonic() - begun, 2)

    def kill_when(self, there: Callable[[], bool], delay: float) -> bool:
        """Kills ``delay`` seconds into what is waited for. False if the process ended before.

        It is halted first, so that there is time to make sure that it is still at it; if not, the next time is taken.
        """
        while not self.ended():
            if not there():
                time.sleep(0.002)
                continue
            time.sleep(delay)
            os.killpg(self.process.pid, signal.SIGSTOP)
            if there():
                self.kill()
                return True
            os.killpg(self.process.pid, signal.SIGCONT)
        return False

    def text(self) -> str:
        return self.output.read_text(encoding='utf-8', errors='replace')


def members(session: int) -> list[int]:
    """The processes of a session that live, by /proc."""
    found = []
    for stat in Path('/proc').glob('[0-9]*/stat'):
        try:
            state, _, _, of, *_ = stat.read_text().rpartition(')')[2].split()
        except OSError:  # it has just ended
            continue
        if int(of) == session and state != 'Z':
            found.append(int(stat.parent.name))
    return found
