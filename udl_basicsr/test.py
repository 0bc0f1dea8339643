"""Tests a network and writes the table of scores: ``python udl_basicsr/test.py -opt options/test_EDSR_UDL_x4.yml``."""
from pathlib import Path

import udl_basicsr  # noqa: F401 - registers
from udl_basicsr.training import launch, loop


def main(root_path: Path | None = None) -> int:
    """Runs the command line, in a ``test.py`` of one's own too; see docs/API.md.

    Args:
        root_path: Where ``experiments/`` and ``results/`` go; None is the working directory.

    Returns:
        0.

    Raises:
        SystemExit: With any other status of :func:`udl_basicsr.training.launch.run`.
    """
    return launch.run_or_exit(lambda parsed, command: loop.test(parsed), is_train=False, root_path=root_path)


if __name__ == '__main__':
    main()
