"""Whole runs, from Python and as processes."""
import os
import subprocess
import sys
from pathlib import Path

from udl_basicsr.training import stages


def train(project, stage, *force, **kwargs):
    parsed = project.parse(stage, *force, **kwargs)
    stages.train(parsed, 'the command')
    return parsed


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob('*') if p.is_file() and p.suffix != '.log'}


def run(*args, cwd, **env):
    environment = {**os.environ, 'CUDA_VISIBLE_DEVICES': '', 'OMP_NUM_THREADS': '1', **env}
    return subprocess.run([sys.executable, *map(str, args)], cwd=cwd, env=environment, capture_output=True, text=True,
                          timeout=300, check=False)
