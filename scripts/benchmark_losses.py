#!/usr/bin/env python
"""What a training step costs with each loss, as a ratio to L1 measured side by side on random patches.

    python scripts/benchmark_losses.py [options/compare/every_loss.yml] [--rounds 20] [--force_yml KEY:KEY=VALUE ...]

Each round takes one step of every model in turn, so that whatever else the machine does falls on all alike; the ratio
of each round is taken against L1's step of the same round, and its median is printed.
"""
import argparse
import itertools
import logging
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

import udl_basicsr  # noqa: F401 - registers

# isort: split
from basicsr.models import build_model

from speed import paired, quartiles, ratios
from udl_basicsr.experiments.plan import Stage, read_plan
from udl_basicsr.options.parse import OptionError, dump_flat, parse_options
from udl_basicsr.utils import exits
from udl_basicsr.utils.checkpoints import save_atomic
from udl_basicsr.utils.command_line import whole
from udl_basicsr.utils.tables import markdown_table


def build(stages: Sequence[Stage], force: list[str], folder: Path):
    """The model of the last of some stages, with weights of its own making where it needs those of the stage before."""
    flat = {key: value for key, value in stages[-1].flat.items() if key != 'stage1'}
    if flat.get('stage') == 'udl':
        first = build(stages[:1], force, folder)
        save_atomic({'params': first.net_u.state_dict()}, folder / 'net_u.pth')
        force = [*force, f'path:pretrain_network_u={folder / "net_u.pth"}']
    force = [*force, *(f'train:{key}:judge_random=true' for key, block in flat['train'].items()
                       if key.endswith('_opt') and block and 'judge' in block)]  # costs what the real one costs
    file = folder / f'{stages[-1].name}.yml'
    file.write_text(dump_flat(flat), encoding='utf-8')
    parsed = parse_options(str(file), root_path=str(folder), is_train=True, force_yml=force, check_files=False)
    model = build_model(parsed.opt)
    model.iters_per_epoch = 1
    return model


def step(model, data: dict):
    """One step of ``model``, as a function."""
    iteration = itertools.count(1)

    def run() -> None:
        model.feed_data(data)
        model.optimize_parameters(next(iteration))
    return run


@exits.command()
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('plan', type=Path, nargs='?', default=Path('options/compare/every_loss.yml'),
                        help='whose methods are measured; one of them is called L1')
    parser.add_argument('--rounds', type=whole(1), default=20)
    parser.add_argument('--force_yml', nargs='+', default=[], metavar='KEY:KEY=VALUE', help='for all of them')
    args = parser.parse_args(argv)
    logging.getLogger('basicsr').setLevel(logging.WARNING)

    with tempfile.TemporaryDirectory() as folder:
        plan = read_plan(args.plan, Path(folder))
        one = {run.method: run for run in reversed(plan.runs)}  # the first of each: one network, scale and seed
        if 'L1' not in one:
            parser.error(f'{args.plan} has no method L1 to compare with')
        try:
            models = {method: build(run.stages, args.force_yml, Path(folder)) for method, run in one.items()}
        except OptionError as error:  # of files that are gone when it is read
            raise OptionError(str(error).replace(f'{folder}/', f'{args.plan}: ')) from None
    opt = models['L1'].opt
    train, scale = opt['datasets']['train'], opt['scale']
    batch, size = train['batch_size_per_gpu'], train['gt_size']
    data = {'lq': torch.rand(batch, 3, size // scale, size // scale), 'gt': torch.rand(batch, 3, size, size)}

    on_gpu = models['L1'].device.type == 'cuda'
    if on_gpu:
        data = {key: value.pin_memory() for key, value in data.items()}

    samples = paired({name: step(model, data) for name, model in models.items()}, args.rounds, title='losses')
    ratios_to_l1 = {name: ratios(seconds, samples['L1']) for name, seconds in samples.items()}
    rows = []
    for name, values in sorted(ratios_to_l1.items(), key=lambda item: statistics.median(item[1])):
        low, middle, high = quartiles(values)
        rows.append([name, f'{middle:.2f}', f'{low:.2f} to {high:.2f}'])
    device = torch.cuda.get_device_name() if on_gpu else f'CPU, {torch.get_num_threads()} thread(s)'
    print(f'{opt["network_g"]["type"]} x{scale}, batch {batch} of {size // scale}x{size // scale}, {device}, '
          f'{args.rounds} rounds\n')
    print(markdown_table(['loss', 'step / L1 step', 'quartiles'], rows))
    return 0


if __name__ == '__main__':
    sys.exit(main())
