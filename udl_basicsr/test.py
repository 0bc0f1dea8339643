"""Tests a network and writes the table of scores: ``python udl_basicsr/test.py -opt options/test_EDSR_UDL_x4.yml``."""
import sys
from pathlib import Path

import udl_basicsr  # noqa: F401 - registers
from udl_basicsr.training import launch, loop


def main(root_path: Path | None = None) -> int:
    return launch.run(lambda parsed, command: loop.test(parsed), is_train=False, root_path=root_path)


if __name__ == '__main__':
    sys.exit(main(root_path=Path(__file__).resolve().parents[1]))
