"""What every model shares of learning rates: iteration n has the n-th rate of its schedule, in BasicSR's order."""
from copy import deepcopy

from .validation import ValidatedModel


class ScheduledModel(ValidatedModel):
    """Sets learning rates by ``train.scheduler`` and ``train.warmup_iter``."""

    def setup_schedulers(self) -> None:
        scheduler_opt = deepcopy(self.opt['train']['scheduler'])
        super().setup_schedulers()  # pops 'type'
        self.opt['train']['scheduler'] = scheduler_opt
        for optimizer in self.optimizers:
            # Iteration n has the schedule's n-th rate, whether a step follows or not. torch takes a first step that was
            # left out, as fp16's often is, for a schedule that goes on too early, and would warn.
            optimizer._opt_called = True  # pyright: ignore[reportAttributeAccessIssue] - as its steps set it

    def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
        """BasicSR's, with a warm-up that returns to the full rate.

        MultiStepRestartLR goes on from the rate it finds (lr_scheduler.py:31), and so would stay at the last warm-up
        rate. Schedulers therefore always see their own last rate; the warm-up is put on top afterwards.
        """
        if current_iter > 1:
            self._set_lr([scheduler.get_last_lr() for scheduler in self.schedulers])
            for scheduler in self.schedulers:
                scheduler.step()
        if current_iter < warmup_iter:
            self._set_lr([[lr * current_iter / warmup_iter for lr in scheduler.get_last_lr()]
                          for scheduler in self.schedulers])
