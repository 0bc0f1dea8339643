"""The log of one run. It starts before the run's folder exists, and ends with the run.

BasicSR's ``get_root_logger`` makes a log file only if its very first call names one (logger.py:166), and never another
in the same process. Here what is said while options, data and networks are checked is kept and written once the folder
is there, and a second run in the process has a file of its own.
"""
import logging
from contextlib import contextmanager
from logging.handlers import MemoryHandler

from basicsr.utils import get_root_logger


class RunLog:
    """The log of the run in progress."""

    def __init__(self, logger: logging.Logger):
        self.logger = logger
        self._early = MemoryHandler(capacity=100_000, flushLevel=logging.CRITICAL + 1)
        self._handler: logging.Handler = self._early
        logger.addHandler(self._handler)

    def to_file(self, path) -> None:
        """Writes what was said so far, and all that follows, to ``path``."""
        file = logging.FileHandler(path, 'w', encoding='utf-8')
        file.setFormatter(logging.Formatter('%(asctime)s %(levelname)s: %(message)s'))
        self._early.setTarget(file)
        self.close()
        self._handler = file
        self.logger.addHandler(file)

    def keep(self, text: str) -> None:
        """Writes to the file alone, of what would fill the console."""
        if self.logger.isEnabledFor(logging.INFO):
            self._handler.handle(self.logger.makeRecord(self.logger.name, logging.INFO, __file__, 0, text, (), None))

    def close(self) -> None:
        self.logger.removeHandler(self._handler)
        self._handler.close()


@contextmanager
def run_log(rank: int):
    """The log of one run, closed at its end; ranks other than 0 say errors only."""
    logger = get_root_logger()
    logger.setLevel(logging.INFO if rank == 0 else logging.ERROR)
    log = RunLog(logger)
    try:
        yield log
    finally:
        log.close()


def init_wandb_logger(opt: dict) -> None:
    """BasicSR's, also where ``wandb.util.generate_id`` is gone (logger.py:138; wandb >= 0.31)."""
    import uuid

    import wandb  # pyright: ignore[reportMissingImports] - need not be there
    from basicsr.utils import logger
    if not hasattr(wandb.util, 'generate_id'):
        wandb.util.generate_id = lambda: uuid.uuid4().hex[:8]
    logger.init_wandb_logger(opt)
