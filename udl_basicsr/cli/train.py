"""Trains all stages of an option file.

Examples:
    udl train -opt udl:EDSR_UDL_x4                                  # an option file that comes with the package
    udl train -opt mine.yml --force_yml train:optim_g:lr=2e-4 datasets:train:num_worker_per_gpu=2
    udl train -opt mine.yml --debug                                 # a run of about a minute
    udl train -opt mine.yml --auto_resume --import my_networks
"""
from __future__ import annotations

from udl_basicsr.training.arguments import TRAINS, launch_parser


def main(argv: list[str] | None = None) -> int:
    launch_parser(TRAINS, __doc__).parse_args(argv)  # --help and what is mistyped wait for nothing
    import udl_basicsr.register  # noqa: F401 - networks, losses and metrics by their names
    from udl_basicsr.training import launch, stages
    return launch.run(stages.train, is_train=True, argv=argv)
