"""The stages of UDLModel, a row for each: the networks, the loss that is the stage's own, and what that loss takes."""
from __future__ import annotations

from collections.abc import Mapping
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


def detach_of(stage: str, train: Mapping | None) -> str:
    """What the loss of a stage does not train, by its option ``detach`` in the block ``train``."""
    row = STAGES.get(stage, STAGES['plain'])
    block = (train or {}).get(row.loss) if row.trains == 'u' else None
    detach = block.get('detach') if isinstance(block, Mapping) else None
    return detach if isinstance(detach, str) else 'none'


def trains_head_alone(stage: str, train: Mapping | None) -> bool:
    """Whether no loss reaches the mean network, which is frozen then: the head is trained post hoc."""
    losses = [key for key, block in (train or {}).items() if key.endswith('_opt') and block]
    return detach_of(stage, train) == 'all' and len(losses) == 1
