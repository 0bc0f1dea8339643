"""Tests a network and writes the table of its scores.

Examples:
    udl test -opt options/test_EDSR_UDL_x4.yml
    udl test -opt options/train_EDSR-S_ESU_x4.yml                   # what a training file has trained
    udl test -opt experiments/EDSR-S_ESU_x4                         # the folder of a run
"""
from __future__ import annotations

from udl_basicsr.training.arguments import TESTS, launch_parser


def main(argv: list[str] | None = None) -> int:
    launch_parser(TESTS, __doc__).parse_args(argv)  # --help and what is mistyped wait for nothing
    import udl_basicsr.register  # noqa: F401 - networks, losses and metrics by their names
    from udl_basicsr.training import launch, loop
    return launch.run(lambda parsed, command: loop.test(parsed), is_train=False, argv=argv)
