#!/usr/bin/env python
"""Inference on pictures: processor time and memory beside a loop as in BasicSR's inference scripts, and onnxruntime.

    OMP_NUM_THREADS=1 python scripts/benchmark_infer.py --pictures datasets/BSD100/LRbicx4 --count 5 --out infer.json

Each contender runs in a process of its own, forked from one that has imported all, in turn, round by round: EDSR-S x4
with random weights, on the CPU. Counted is what comes after the network is loaded; the memory is what the process holds
beyond that at its worst moment. Not for Windows, which cannot fork.
"""
import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

import speed
from speed.contenders import build_network
from udl_basicsr.deploy.export import export_onnx
from udl_basicsr.deploy.infer import carry_out
from udl_basicsr.deploy.infer_plan import make_plan
from udl_basicsr.deploy.restorer import load_restorer
from udl_basicsr.functional.inference import tiled
from udl_basicsr.utils import exits, processor
from udl_basicsr.utils.command_line import to_file, whole
from udl_basicsr.utils.files import write_text
from udl_basicsr.utils.tables import text_table

CONTENDERS = ('basicsr', 'basicsr, tiles of 128', 'ours', 'ours, tiles of 64', 'ours, tiles of 128', 'ours, bf16',
              'onnxruntime', 'onnxruntime, tiles of 128')


@exits.command()
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--pictures', type=Path, required=True, metavar='FOLDER')
    parser.add_argument('--count', type=whole(1), default=5, help='of its pictures, the first; default 5')
    parser.add_argument('--rounds', type=whole(1), default=3)
    parser.add_argument('--only', nargs='+', choices=CONTENDERS, default=CONTENDERS, metavar='NAME',
                        help=f'of {"; ".join(CONTENDERS)}; default: all. The others are compared with the first')
    parser.add_argument('--out', type=to_file, metavar='FILE', help='JSON to write')
    args = parser.parse_args(argv)
    pictures = sorted(args.pictures.glob('*.png'))[:args.count]
    if not pictures:
        parser.error(f'--pictures {args.pictures}: expected a folder with PNG files')
    if broken := [str(picture) for picture in pictures if cv2.imread(str(picture)) is None]:
        parser.error(f'{", ".join(broken)}: no image that OpenCV can read; remove it, or give a smaller --count')
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), any('onnx' in name for name in args.only))
        found = {name: [] for name in args.only}
        for _ in range(args.rounds):
            for name, results in found.items():
                results.append(_in_a_process(pictures, name, Path(folder)))
                print(f"{name}: {results[-1]['seconds']:.2f} s", file=sys.stderr)
        sizes = [cv2.imread(str(picture)).shape[:2] for picture in pictures]
    report = {'processor': processor.name(torch.device('cpu')), 'threads': torch.get_num_threads(), 'sizes': sizes,
              'contenders': found}
    rows = []
    for name, results in found.items():
        ratio = speed.figure(speed.ratios([r['seconds'] for r in found[args.only[0]]], [r['seconds'] for r in results]))
        memory = speed.figure([r['bytes'] / 2**20 for r in results])['median']
        rows.append([name, f"{len(pictures) / speed.figure([r['seconds'] for r in results])['median']:.2f}",
                     f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})", f'{memory:.0f}'])
    print(text_table(['', 'pictures a second', f'times as fast as {args.only[0]}', 'peak MiB'], rows))
    if args.out:
        write_text(args.out, json.dumps(report, indent=1) + '\n')
    return 0


def prepare(folder: Path, onnx: bool) -> None:
    """The network as a checkpoint with its option file, and where it is needed as ONNX."""
    torch.manual_seed(0)
    block = speed.Case('EDSR-S').options()
    network = build_network(block).eval()
    torch.save({'params': network.state_dict()}, folder / 'net_g.pth')
    (folder / 'net_g.yml').write_text(json.dumps({'network_g': block, 'scale': 4}))
    if onnx:
        export_onnx(network, folder / 'net_g.onnx')


def _in_a_process(pictures: list[Path], name: str, folder: Path) -> dict:
    here, there = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context('fork').Process(
        target=lambda: there.send(_measured(pictures, name, folder)), daemon=True)
    process.start()
    there.close()
    try:
        return here.recv()
    finally:
        process.join()


def _measured(pictures: list[Path], name: str, folder: Path) -> dict:
    with tempfile.TemporaryDirectory() as out:
        run = _contender(name, pictures, folder, Path(out))
        before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        run()
        seconds = time.process_time() - begin
        return {'seconds': seconds, 'bytes': 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)}


def _contender(name: str, pictures: list[Path], folder: Path, out: Path) -> Callable[[], object]:
    tile = int(name.rpartition(' ')[2]) if 'tiles' in name else None
    if name.startswith('ours'):
        processor.keep_freed_memory()  # as udl infer does
        restorer = load_restorer(folder / 'net_g.pth', opt=folder / 'net_g.yml', device='cpu', tile=tile,
                                 amp='bf16' if 'bf16' in name else None)
        plan = make_plan(pictures, out)
        return lambda: carry_out(plan.jobs, restorer)
    if name.startswith('onnxruntime'):
        import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(folder / 'net_g.onnx', options, providers=['CPUExecutionProvider'])

        def restore(image: np.ndarray) -> np.ndarray:
            return session.run(['sr'], {'lq': image})[0]
    else:
        network = build_network(speed.Case('EDSR-S').options())
        network.load_state_dict(torch.load(folder / 'net_g.pth')['params'])
        network.eval()

        def restore(image: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return network(torch.from_numpy(image)).numpy()

    def whole(image: np.ndarray) -> np.ndarray:
        """In tiles with as much around each as `udl infer` has, where they are asked for."""
        if tile is None:
            return restore(image)
        return tiled(lambda lq: torch.from_numpy(restore(lq.contiguous().numpy())), tile, 32, 4)(
            torch.from_numpy(image)).numpy()

    def run() -> None:
        """As BasicSR's inference scripts: one picture after the other, read, restored whole and written."""
        for picture in pictures:
            image = cv2.imread(str(picture), cv2.IMREAD_COLOR).astype(np.float32) / 255
            image = np.ascontiguousarray(image[:, :, ::-1].transpose(2, 0, 1))[None]
            sr = whole(image)[0].clip(0, 1)[::-1].transpose(1, 2, 0)
            cv2.imwrite(str(out / picture.name), (sr * 255).round().astype(np.uint8))
    return run


if __name__ == '__main__':
    exits.print_anything()
    sys.exit(main())
