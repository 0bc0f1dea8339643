"""What every model shares when it is saved and goes on: checkpoints and training states."""
from pathlib import Path

import torch

from udl_basicsr.utils.checkpoints import save_atomic
from udl_basicsr.utils.settings import LoggerSettings

from .schedules import ScheduledModel

_HOW_COMPUTED = ('foreach', 'fused', 'capturable', 'differentiable')
_THEN = 'resume with --auto_resume'
_POSITION = ('last_epoch', '_step_count', 'base_lrs', '_last_lr')  # of a scheduler


class SavedModel(ScheduledModel):
    """Keeps what :meth:`networks_to_save` names, and a training state beside it.

    Attributes:
        scaler (torch.amp.GradScaler): Of the step; at rest but for ``fp16``.
        run (dict): What the loop wants to find again in a training state.
        skipped (int), skipped_in_a_row (int): Steps that were left out, in all and up to now.
    """
    scaler: torch.amp.GradScaler
    run: dict
    skipped: int
    skipped_in_a_row: int

    def networks_to_save(self) -> dict:
        """``{label: {param_key: network}}`` for ``<label>_<iter>.pth``."""
        raise NotImplementedError

    def save_networks(self, iteration: int | str) -> None:
        """``<label>_<iteration>.pth`` of each network, by rank 0."""
        if self.opt['rank'] != 0:
            return
        for label, networks in self.networks_to_save().items():
            content = {key: {k: v.cpu() for k, v in net.state_dict().items()} for key, net in networks.items()}
            save_atomic(content, Path(self.opt['path']['models']) / f'{label}_{iteration}.pth', _THEN)

    def save(self, epoch: int, current_iter: int) -> None:
        """Networks first, the training state last: a state that exists has its networks."""
        self.save_networks('latest' if current_iter == -1 else current_iter)
        self.save_training_state(epoch, current_iter)
        self._drop_old(LoggerSettings.of(self.opt.get('logger')).keep_last)

    def save_training_state(self, epoch: int, current_iter: int) -> None:
        if current_iter == -1 or self.opt['rank'] != 0:
            return
        state = {
            'epoch': epoch,
            'iter': current_iter,
            'optimizers': [o.state_dict() for o in self.optimizers],
            'schedulers': [s.state_dict() for s in self.schedulers],
            'scaler': self.scaler.state_dict(),
            'skipped': [self.skipped, self.skipped_in_a_row],
            'best_metric_results': getattr(self, 'best_metric_results', {}),
            'run': self.run,
        }
        save_atomic(state, Path(self.opt['path']['training_states']) / f'{current_iter}.state', _THEN)

    def _drop_old(self, keep: int | None) -> None:
        if not keep or self.opt['rank'] != 0:
            return
        states = Path(self.opt['path']['training_states'])
        old = sorted(int(p.stem) for p in states.glob('*.state') if p.stem.isascii() and p.stem.isdigit())[:-keep]
        for iteration in old:
            (states / f'{iteration}.state').unlink(missing_ok=True)  # first, so that no state is without networks
            for label in self.networks_to_save():
                (Path(self.opt['path']['models']) / f'{label}_{iteration}.pth').unlink(missing_ok=True)

    def resume_training(self, resume_state: dict) -> None:
        """Goes on from a state: moments and settings of the optimisers, learning rates and position of the schedules.

        How an optimiser computes (``foreach``, ``fused``, ...) is this machine's affair, and the schedule itself is
        that of the options: one that was lengthened goes on beyond its old end.
        """
        optimizers = [{**saved, 'param_groups': [
            {**group, **{key: own[key] for key in _HOW_COMPUTED if key in own}}
            for group, own in zip(saved['param_groups'], optimizer.param_groups, strict=True)]}
            for saved, optimizer in zip(resume_state['optimizers'], self.optimizers, strict=True)]
        schedulers = [{key: saved[key] for key in _POSITION} for saved in resume_state['schedulers']]
        super().resume_training({**resume_state, 'optimizers': optimizers, 'schedulers': schedulers})
        self.scaler.load_state_dict(resume_state.get('scaler', {}) or self.scaler.state_dict())
        self.skipped, self.skipped_in_a_row = resume_state.get('skipped', (0, 0))
        self.best_metric_results = resume_state.get('best_metric_results', {})
