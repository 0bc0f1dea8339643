"""Trains what an option file says, all its stages: ``udl train -opt options/train_EDSR_UDL_x4.yml``."""
from __future__ import annotations

from udl_basicsr.training.arguments import TRAINS, launch_parser


def main(argv: list[str] | None = None) -> int:
    launch_parser(TRAINS).parse_args(argv)  # --help and what is mistyped wait for nothing
    import udl_basicsr.register  # noqa: F401 - networks, losses and metrics by their names
    from udl_basicsr.training import launch, stages
    return launch.run(stages.train, is_train=True, argv=argv)
