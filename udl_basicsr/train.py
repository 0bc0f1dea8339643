"""Trains what an option file says: ``python udl_basicsr/train.py -opt options/train_EDSR_UDL_x4.yml``."""
from pathlib import Path

import udl_basicsr  # noqa: F401 - registers
from udl_basicsr.training import launch, stages


def main(root_path: Path | None = None) -> int:
    """Runs the command line, in a ``train.py`` of one's own too; see docs/API.md.

    Args:
        root_path: Where ``experiments/`` and ``results/`` go; None is the working directory.

    Returns:
        0.

    Raises:
        SystemExit: With any other status of :func:`udl_basicsr.training.launch.run`.
    """
    return launch.run_or_exit(stages.train, is_train=True, root_path=root_path)


if __name__ == '__main__':
    main()
