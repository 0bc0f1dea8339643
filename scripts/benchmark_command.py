#!/usr/bin/env python
"""What `udl train` spends before its first step, between its stages and on a validation: seconds, and steps of stage 1.

    OMP_NUM_THREADS=1 python scripts/benchmark_command.py -opt options/train_EDSR-S_UDL_x4.yml --out command.json

Trains two iterations of stage 1 and one of stage 2 on the CPU, with the data that the option file names, into a
temporary folder. Of each part the processor time is added up: what others compute on the machine does not lengthen it.
"""
import argparse
import importlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path

if __name__ == '__main__':
    os.environ.setdefault('OMP_NUM_THREADS', '1')  # which torch reads when it is imported

IMPORTS = {'Python starts': time.process_time()}
for module in ('numpy', 'cv2', 'scipy.stats', 'torch', 'udl_basicsr.register', 'torch.utils.tensorboard',
               'udl_basicsr.training.stages', 'torch._dynamo'):
    begin = time.process_time()
    importlib.import_module(module)
    # the compiler last: torch's optimisers import it
    IMPORTS[f'import {module}'] = time.process_time() - begin

import speed  # noqa: E402 - the imports above are what is timed first
from speed.phases import Phases  # noqa: E402
from udl_basicsr.data.loader import ValidationImages  # noqa: E402
from udl_basicsr.models import validation  # noqa: E402
from udl_basicsr.models.step import StepModel  # noqa: E402
from udl_basicsr.models.udl_model import UDLModel  # noqa: E402
from udl_basicsr.options import data_sets, network_values, parse, training_values  # noqa: E402
from udl_basicsr.options.parse import OptionError  # noqa: E402
from udl_basicsr.training import launch, loop, stages  # noqa: E402
from udl_basicsr.utils import exits, processor  # noqa: E402
from udl_basicsr.utils.command_line import to_file  # noqa: E402
from udl_basicsr.utils.files import write_text  # noqa: E402
from udl_basicsr.utils.tables import text_table  # noqa: E402

PARTS = {
    'options read and checked': [(launch, 'parse_options')],
    'networks and losses tried': [
        (network_values, 'build_network'), (network_values, 'try_network'), (training_values, 'build_network'),
        (training_values, 'try_loss'), (training_values, 'try_parameters')],
    'data checked': [(parse, 'check_data')],
    'metrics tried': [(data_sets, 'try_metric')],
    'what the machine is': [(loop, 'get_env_info')],
    'data sets': [(loop, 'build_dataset'), (loop, 'train_batches')],
    'model built': [(loop, 'build_model')],
    'uncertainty cache': [(loop.uncertainty_cache, 'prepare')],
    'folders and logs': [(loop, 'make_folders'), (loop, '_tb_logger'), (loop, 'History')],
    'weights and states saved': [(StepModel, 'save')],
    'the step itself': [(StepModel, 'feed_data'), (StepModel, 'optimize_parameters')],
    'images read': [(ValidationImages, '__getitem__')],
    'network': [(StepModel, 'test')],
    'uncertainty for TensorBoard': [(UDLModel, 'log_scale')],
    'images to 8 bits': [(validation, '_image')],
    'metrics': [(StepModel, '_measure')],
}
START, BETWEEN, VALIDATION = 'to the first step', "from stage 1's last step to stage 2's first", 'a validation'


class _EnoughError(Exception):
    """The first step of the last stage is done."""


@exits.command()
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('-opt', required=True, metavar='FILE', help='option file of stage 2, which names stage 1')
    parser.add_argument('--force_yml', nargs='+', default=[], metavar='KEY=VALUE', help='as for udl train')
    parser.add_argument('--val', nargs=2, metavar=('GT', 'LQ'), help="folders to validate on (default: the file's)")
    parser.add_argument('--out', type=to_file, metavar='FILE', help='JSON to write')
    args = parser.parse_args(argv)
    report = measure(args.opt, args.force_yml, args.val)
    print(tables(report))
    if args.out:
        write_text(args.out, json.dumps(report, indent=1) + '\n')
    return 0


def measure(file: str, force_yml: list[str], val: list[str] | None = None) -> dict:
    """``{'processor', 'step': seconds of one of stage 1, and a dictionary of parts and seconds for each segment}``."""
    phases = Phases()
    with phases.watched(PARTS):
        return _measure(phases, file, force_yml, val)


def _measure(phases: Phases, file: str, force_yml: list[str], val: list[str] | None) -> dict:
    segments, models, steps = {}, [], []
    step, validate = StepModel.optimize_parameters, loop._validate

    def take(segment: str) -> None:
        known = segments.setdefault(segment, {})
        for part, seconds in phases.take().items():
            known[part] = known.get(part, 0.) + seconds

    def optimize_parameters(model, iteration):
        step(model, iteration)
        if model in models:
            steps.append(phases.take()['the step itself'])
            return
        models.append(model)
        take(START if len(models) == 1 else BETWEEN)
        if len(models) == 2:
            raise _EnoughError

    def validated(*arguments):
        take(BETWEEN)
        validate(*arguments)
        take(VALIDATION)

    def act(parsed, command):
        if parsed.stage1 is None:
            raise OptionError(f'{file}: stage1: missing; expected the option file of a second stage')
        if val:
            speed.check_folders(*map(Path, val), scale=parsed.opt['scale'])
        for stage in (parsed.stage1, parsed):
            stage.opt['train']['total_iter'] = 2
            if val:
                known = [key for key in stage.opt['datasets'] if key.startswith('val')]
                blocks = [stage.opt['datasets'].pop(key) for key in known]
                stage.opt['datasets']['val'] = {**blocks[0], 'name': Path(val[0]).parent.name,
                                                'dataroot_gt': val[0], 'dataroot_lq': val[1]}
        stages.train(parsed, command)

    StepModel.optimize_parameters, loop._validate = optimize_parameters, validated
    with tempfile.TemporaryDirectory() as folder:
        try:
            arguments = ['-opt', file, *(['--force_yml', *force_yml] if force_yml else [])]
            if status := launch.run(act, is_train=True, root_path=Path(folder), argv=arguments):
                sys.exit(status)
        except _EnoughError:
            pass
        finally:
            StepModel.optimize_parameters, loop._validate = step, validate
    segments[START] = {**IMPORTS, **segments[START]}
    segments[START][Phases.REST] -= sum(IMPORTS.values())
    return {'processor': processor.name(loop.torch.device('cpu')), 'step': steps[0], 'segments': segments}


def tables(report: dict) -> str:
    """The shares of each segment, for the terminal."""
    parts = [f"{report['processor']}; a step of stage 1 takes {report['step']:.3f} s of processor time"]
    for title, spent in report['segments'].items():
        whole = sum(spent.values())
        rows = [[part, f'{seconds:.2f}', f'{seconds / whole:.0%}']
                for part, seconds in sorted(spent.items(), key=lambda item: -item[1]) if seconds > 0.005 * whole]
        parts.append(text_table([f"{title}: {whole:.2f} s, {whole / report['step']:.1f} steps", 's', 'share'], rows))
    return '\n\n'.join(parts)


if __name__ == '__main__':
    exits.print_anything()
    sys.exit(main())
