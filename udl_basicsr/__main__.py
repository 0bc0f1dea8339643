"""``python -m udl_basicsr <command>``, the same as ``udl <command>``: ``torchrun -m udl_basicsr train ...``."""
import sys

from udl_basicsr.cli.main import main

if __name__ == '__main__':
    sys.exit(main())
