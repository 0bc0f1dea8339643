"""Trains what an option file says: ``python udl_basicsr/train.py -opt options/train_EDSR_UDL_x4.yml``."""
import sys
from pathlib import Path

import udl_basicsr  # noqa: F401 - registers
from udl_basicsr.training import launch, stages


def main(root_path: Path | None = None) -> int:
    return launch.run(stages.train, is_train=True, root_path=root_path)


if __name__ == '__main__':
    sys.exit(main(root_path=Path(__file__).resolve().parents[1]))
