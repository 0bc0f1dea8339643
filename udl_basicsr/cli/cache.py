"""Computes s of every training image once, with the frozen network of stage 1, so that stage 2 needs only to read it.

The option file is that of stage 2 and names the folder in ``datasets.train.uncertainty_cache``; training makes a cache
that is not there by itself. Interrupted, it goes on; done, it says so. With torchrun the processes share the work.

Example:
    udl cache -opt options/train_EDSR_UDL_x4.yml --force_yml datasets:train:uncertainty_cache=auto
"""
from __future__ import annotations

from udl_basicsr.training.arguments import launch_parser

DOES = 'Computes the uncertainty of the training images once, for stage udl.'


def main(argv: list[str] | None = None) -> int:
    launch_parser(DOES, __doc__).parse_args(argv)  # --help and what is mistyped wait for nothing
    import udl_basicsr.register  # noqa: F401 - networks, losses and metrics by their names
    from udl_basicsr.training import launch, stages
    return launch.run(stages.cache_uncertainty, is_train=True, does=DOES, argv=argv)
