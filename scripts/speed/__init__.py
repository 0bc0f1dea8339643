"""What training, validation and reading cost against stock BasicSR and the published code, measured side by side.

Everything that is compared runs in the same process, in turn, round by round, so that whatever else the machine does
falls on all alike. A ratio is taken within a round; its median and quartiles over the rounds are what is reported.
"""
import udl_basicsr  # noqa: F401 - before anything imports basicsr, which needs its shims

from .contenders import NETWORKS, Case, Settings, Trainer, levers
from .loading import waiting
from .measuring import FIGURES, GOALS, fastest, run
from .memory import peak_memory
from .pairing import CLOCKS, by, figure, paired, quartiles, ratios
from .pictures import SpeedError, as_lmdb, check_folders, make_images
from .plan import Plan, make_plan
from .published import PlainHead, PublishedStage2
from .report import save, tables, write
from .validating import validation

__all__ = ['CLOCKS', 'FIGURES', 'GOALS', 'NETWORKS', 'Case', 'PlainHead', 'Plan', 'PublishedStage2', 'Settings',
           'SpeedError', 'Trainer', 'as_lmdb', 'by', 'check_folders', 'fastest', 'figure', 'levers', 'make_images',
           'make_plan', 'paired', 'peak_memory', 'quartiles', 'ratios', 'run', 'save', 'tables', 'validation',
           'waiting', 'write']
