#!/usr/bin/env python
"""Computes s of every training image once, with the frozen network of stage 1, so that stage 2 needs only to read it.

The option file is that of stage 2 and names the folder in ``datasets.train.uncertainty_cache``; training makes a cache
that is not there by itself. Interrupted, it goes on; done, it says so. With torchrun the processes share the work.

Example:
    python scripts/cache_uncertainty.py -opt options/train_EDSR_UDL_x4.yml \\
        --force_yml datasets:train:uncertainty_cache=auto
"""
from __future__ import annotations

import sys
from pathlib import Path

import udl_basicsr  # noqa: F401 - registers
from udl_basicsr.training import launch, stages


def main(root_path: Path | None = None) -> int:
    return launch.run(stages.cache_uncertainty, is_train=True, root_path=root_path,
                   does='Compute the uncertainty of the training images once, for stage udl.')


if __name__ == '__main__':
    sys.exit(main(root_path=Path(__file__).resolve().parents[1]))
