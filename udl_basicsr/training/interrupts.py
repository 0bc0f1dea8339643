"""SIGTERM and Ctrl-C: the step in progress is finished and saved before the process ends.

Where everything is saved already, as in the last validation, nothing keeps a signal waiting.
"""
import signal
import threading
import time

import torch
import torch.distributed as dist

from udl_basicsr.utils.errors import UdlError

# BSD's EX_TEMPFAIL, "try again later": neither success, nor failure, nor what a killed process leaves.
EXIT_INTERRUPTED = 75
_ONE_REQUEST = 2.  # seconds: what stops a whole session reaches a rank directly and by torchrun, which passes it on


class Interrupted(UdlError):
    """A run that was asked to stop and has saved its state; the message says where, and how to go on."""
    status = EXIT_INTERRUPTED


class Interrupts:
    """While active, the first SIGTERM or SIGINT is kept until asked for; a later one acts as if none were kept.

    What comes within two seconds of the first is the same request.

    A SIGINT that is ignored stays so: ``nohup`` and a shell's ``&`` start their commands like this, lest a Ctrl-C that
    is meant for another one reach them.
    """

    def __init__(self):
        self.signal = None
        self._since = 0.
        self._before = {}
        self._saved = None

    def __enter__(self) -> 'Interrupts':
        if threading.current_thread() is threading.main_thread():  # Python allows handlers there alone
            for number in (signal.SIGTERM, signal.SIGINT):
                if number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._keep)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _keep(self, number: int, frame) -> None:
        if self.signal is not None:
            if time.monotonic() - self._since > _ONE_REQUEST:
                self.__exit__()
                signal.raise_signal(number)
            return
        self.signal, self._since = signal.Signals(number).name, time.monotonic()
        if self._saved is not None:
            raise Interrupted(f'Stopped by {self.signal} {self._saved}')

    def at_once(self, saved: str) -> None:
        """From here on a signal ends the run where it is, for there is nothing left to save.

        Args:
            saved (str): Goes on after "Stopped by SIGTERM": up to where, and how to go on.

        Raises:
            Interrupted: Now, where a signal has been kept; later, in the middle of whatever comes.
        """
        self._saved = saved
        if self.signal is not None:
            raise Interrupted(f'Stopped by {self.signal} {saved}')

    def agreed(self, device: torch.device) -> bool:
        """Whether any rank was asked to stop. All ranks must ask at the same iteration, and get the same answer."""
        asked = self.signal is not None
        if not (dist.is_available() and dist.is_initialized()):
            return asked
        flag = torch.tensor(int(asked), device=device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag)
