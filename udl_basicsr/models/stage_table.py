"""The stages of UDLModel, a row for each: the networks, the loss that is the stage's own, and what that loss takes."""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StageRow:
    """One row."""
    networks: tuple[str, ...]
    """The blocks of the networks it runs."""
    trains: str
    """Label of the network that is trained; ``u`` has the mean network in it."""
    loss: str | None = None
    """The block of the loss that is its own; other losses may stand beside it."""
    example: str = ''
    """What that block may hold."""
    gives: str | None = None
    """What network_u says, by the name under which losses need it: it is a batch's where that has it already."""
    figure: str = ''
    """What the log calls the mean of it."""


STAGES = {
    'plain': StageRow(('network_g', ), 'g'),
    'esu': StageRow(('network_g', 'network_u'), 'u', 'likelihood_opt', '{type: ESULoss}', 'log_scale', 's_mean'),
    'udl': StageRow(('network_g', 'network_u'), 'g', 'udl_opt', '{type: UDLLoss}', 'log_scale', 's_mean'),
    'sigma': StageRow(('network_g', 'network_u'), 'u', 'sigma_opt', '{type: SigmaLoss}', 'sigma', 'sigma_mean'),
}
