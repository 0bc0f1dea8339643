"""Optional keys of option files as typed values, with their defaults: the one place that states them.

BasicSR's own code takes the dictionaries themselves. Ours reads these views of them, so that an option file means the
same whether our training loop runs it or BasicSR's, which fills in nothing.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

S = TypeVar('S', bound='Settings')


@dataclass(frozen=True)
class Settings:
    """A view of one block; keys of others are left alone."""

    @classmethod
    def of(cls: type[S], block: Mapping[str, Any] | None) -> S:
        """What a block says; where a key is missing or null, the default."""
        block = block or {}
        return cls(**{f.name: block[f.name] for f in fields(cls) if block.get(f.name) is not None})


@dataclass(frozen=True)
class RunSettings(Settings):
    """Keys of the top level. Models read them from ``opt`` itself: which of them a model reads is found in its source
    (``options.signatures.keys_read``)."""
    stage: str = 'plain'
    rounds: int = 1
    degradation: str = 'BI'
    deterministic: bool = False
    find_unused_parameters: bool = False


@dataclass(frozen=True)
class LoaderSettings(Settings):
    """Keys of ``datasets.train``, beside those of the data set."""
    skip_broken: bool = False
    first_iter: int = 0
    dataset_enlarge_ratio: int = 1
    prefetch_mode: str | None = None
    num_prefetch_queue: int = 1
    pin_memory: bool = True
    in_memory: bool = False
    uncertainty_cache: str | None = None


@dataclass(frozen=True)
class TrainSettings(Settings):
    """Keys of ``train``."""
    ema_decay: float = 0
    warmup_iter: int = -1
    accumulate: int = 1
    grad_clip: float | None = None
    skip_nonfinite: int = 0
    amp: str | None = None
    channels_last: bool = False
    compile: bool = False


@dataclass(frozen=True)
class ValSettings(Settings):
    """Keys of ``val``."""
    save_img: bool = False
    pbar: bool = False
    suffix: str | None = None
    metrics: dict[str, dict] = field(default_factory=dict)
    save_best: dict[str, str] | None = None
    rounded: bool = True
    tile: dict[str, int] | None = None
    self_ensemble: bool = False


@dataclass(frozen=True)
class LoggerSettings(Settings):
    """Keys of ``logger``."""
    use_tb_logger: bool = False
    keep_last: int | None = None
    wandb: dict[str, str | None] = field(default_factory=dict)


def strict_load(path: Mapping[str, Any], label: str) -> bool:
    """``path.strict_load_<label>``: whether every weight of a network must be found in its file."""
    return path.get(f'strict_load_{label}', True)
