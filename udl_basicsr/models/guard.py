"""Whether a step may be taken, which all ranks must answer alike, without making the host wait for the device."""
from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def clip_grad_norm(parameters: Iterable[Tensor], largest: float | None) -> Tensor:
    """The norm of the gradients, all taken together, which are shortened to ``largest`` if that is given.

    torch's multiplies all gradients even where nothing is to be clipped: by one, which costs as much as the norm.
    """
    parameters = list(parameters)
    if largest:
        return nn.utils.clip_grad_norm_(parameters, largest)
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return torch.zeros((), device=parameters[0].device if parameters else None)
    norms = torch._foreach_norm(grads)  # pyright: ignore[reportPrivateImportUsage] - as torch's
    return torch.linalg.vector_norm(torch.stack(norms))


def leaves_out_by_itself(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimiser looks at ``found_inf`` on the device, as torch's fused ones do for a gradient scaler."""
    return getattr(optimizer, '_step_supports_amp_scaling', False)


def starts_from_anything(optimizer: torch.optim.Optimizer) -> bool:
    """Whether what an optimiser keeps stays uninitialised memory when it leaves its very first step out by itself.

    torch's fused SGD makes its momentum by ``empty_like`` and trusts the first step to fill it (torch/optim/sgd.py).
    """
    return isinstance(optimizer, torch.optim.SGD) and any(group['momentum'] for group in optimizer.param_groups)


class StepGuard:
    """Looks whether losses and gradients are finite, and whether any rank was asked to stop.

    One reduction over the ranks tells both. At once: the host reads it before the optimiser may step, and waits for
    the device to get there. Late: the optimiser leaves the step out by itself, and the host reads what has happened
    when it has already sent off the step that comes next. Nothing is lost by that, since a step that follows too many
    in a row is left out on the device too.

    Args:
        device (torch.device): Where losses are.
        ranks (int): Processes; 1 has no one to ask.
        allowed (int): Steps in a row that may be left out.
        late (bool): Every optimiser leaves out steps by itself.

    Attributes:
        left_out (Tensor): Late: 1 on the device where the present step is not to be taken, else 0.
        stop (bool): Whether any rank was asked to stop, by what has been read.
    """

    def __init__(self, device: torch.device, ranks: int, allowed: int, late: bool):
        self.device, self.ranks, self.allowed, self.late = device, ranks, allowed, late
        self.stop = False
        self.left_out = self._in_a_row = self._halted = torch.zeros((), device=device)
        self._flags = torch.zeros(2, device=device)
        self._unread: tuple[Tensor, Any, Any] | None = None

    def resume(self, in_a_row: int) -> None:
        """Goes on after so many steps in a row that were left out."""
        self._in_a_row = self._in_a_row.new_tensor(in_a_row)

    def begin(self) -> None:
        """Before the updates of an iteration."""
        self.left_out, self._flags = self._halted, torch.zeros_like(self._flags)
        if not self.late:
            self.stop = False

    def refuses(self, finite: Tensor, asked: bool) -> bool:
        """Takes in one update; whether the host is to leave it out. Late it never is.

        Args:
            finite (Tensor): A truth value on the device, of this rank.
            asked (bool): Whether this rank was asked to stop.
        """
        flags = torch.stack([1 - finite.float(), finite.new_full((), float(asked), dtype=torch.float)])
        if self.ranks > 1:
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        if self.late:
            self._flags = torch.maximum(self._flags, flags)
            self.left_out = torch.maximum(self.left_out, flags[0])
            return False
        refused, stop = flags.tolist()
        self.stop |= bool(stop)
        return bool(refused)

    def step(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
        """A step of an update that was not refused."""
        if not self.late:
            scaler.step(optimizer)
            return
        not_taken = self.left_out
        if scaler.is_enabled():  # one in search of its scale leaves out steps as well; its own step would forget ours
            # 0 or 1, never 2: the fused kernels look whether it is 1.
            not_taken = functools.reduce(torch.maximum, scaler._found_inf_per_device(optimizer).values(), not_taken)
        optimizer.found_inf = not_taken  # pyright: ignore[reportAttributeAccessIssue] - torch's scaler does so
        optimizer.step()
        del optimizer.found_inf  # pyright: ignore[reportAttributeAccessIssue]

    def update(self, scaler: torch.amp.GradScaler) -> None:
        """Of the scale, after the steps of an iteration. NaN says nothing about it: left out, it stays.

        Late without reading it back; the count of steps up to its next doubling then begins anew.
        """
        if not (self.late and scaler.is_enabled()):
            scaler.update()
            return
        one = torch.ones((), device=self.device)
        before = scaler.scale(one)
        scaler.update()
        scaler.update(torch.where(self.left_out > 0, before, scaler.scale(one)))

    def end(self, note: Any) -> None:
        """Late: sends the answer on its way to the host, with what is to be known of this iteration if it is bad."""
        bad = self._flags[0]
        self._in_a_row = (self._in_a_row + 1) * bad
        self._halted = torch.maximum(self._halted, (self._in_a_row > self.allowed).float())
        answer, arrived = self._flags, None
        if self.device.type == 'cuda':
            answer = torch.empty(2, pin_memory=True).copy_(self._flags, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self._unread = answer, arrived, note

    def read(self) -> tuple[bool, Any]:
        """The answer that is on its way: whether that iteration was left out, and what was noted of it."""
        if self._unread is None:
            return False, None
        (answer, arrived, note), self._unread = self._unread, None
        if arrived is not None:
            arrived.synchronize()
        bad, stop = answer.tolist()
        self.stop = bool(stop)
        return bool(bad), note
