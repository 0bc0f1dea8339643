"""Makes the weights that come with the package, and their model card, from the runs of a comparison.

    python scripts/ship_weights.py docs/results/weights/ESU_UDL_x4_seed0.json [RECORD ...] --root .

Each record's last network becomes udl_basicsr/weights/<method>_x<scale>.safetensors, and the uncertainty network of its
stage 1 ESU_x<scale>.safetensors. Their metadata hold the network, how it was trained, on what, by which commit, and the
scores; README.md beside them says the same for people. Run again with other records, it replaces theirs and keeps the
others.
"""
import argparse
import hashlib
import json
import sys
import textwrap
from pathlib import Path

import udl_basicsr.register  # noqa: F401 - the networks, by their names
from udl_basicsr.data.uncertainty_maps import fingerprint
from udl_basicsr.deploy.export import build_loaded, export_safetensors
from udl_basicsr.experiments.record_files import read_record
from udl_basicsr.utils import exits
from udl_basicsr.utils.checkpoints import network_weights, safetensors_metadata
from udl_basicsr.utils.files import write_text
from udl_basicsr.utils.scores import ScoresError
from udl_basicsr.utils.shipped_weights import folder, scales

NAMES = {'L1': 'L1', 'ESU_UDL': 'UDL'}
LOSSES = {'L1': 'L1', 'UDL': 'UDL, after ESU', 'ESU': 'ESU: the image and its uncertainty'}
DATA = 'T91 and BSDS400, the 484 images with no side under 128 pixels; bicubic LR'
CARD = """# Model card

Small networks for a first look: EDSR with {network}. `udl infer PICTURE --out FOLDER` uses `UDL_x4`, with the
uncertainty of `ESU_x4`, if you name no weights{other_scales}. Wherever weights are named, also in option files,
`udl:UDL_x4` means the file of that name in this folder.

{table}

PSNR in dB and SSIM on the Y channel, border cropped by the scale, SR rounded to 8 bits, mean over the images. A row
of ESU scores the image that it predicts beside its uncertainty. `udl test -opt udl:small/weights` repeats the row of
UDL at ×4; add {other_tests}`--force_yml path:pretrain_network_g=udl:L1_x4` for that of L1.

**Training.** {data}. Random crops of {crop} LR pixels, flips and turns, batch {batch}, Adam with a learning rate of
{rate} that falls by a cosine in each stage, float32. The metadata of each file hold the options, the scores, the
commit and a hash of the weights.

**Use.** For trying the software and for teaching. The networks have 14 to 16 % of EDSR-S's weights and were trained
for less than a twentieth of the UDL paper's iterations. They know only photographs that were reduced by bicubic
interpolation: noise, blur and JPEG blocks stay. Do not quote their scores; train networks of a published size for
that.

**The uncertainty** is s, the log of the scale of the error. It comes from the ESU network and describes ESU's image,
not UDL's. At {calibrated} it is calibrated for UDL's image: `udl infer PICTURE --out FOLDER --intervals` writes bounds
with at most 10 % of the values outside, on average over images like those of Set5, Set14 and BSD100. For other
images, calibrate anew: see docs/UNCERTAINTY.md.

**Licence.** The same as the repository's. The training images are public benchmark sets for research.

| file | SHA-256 |
|:---|:---|
{hashes}

Written by `scripts/ship_weights.py` from the records of a comparison; do not edit it by hand.
"""


def ship(blocks: dict, label: str, source: Path, name: str, facts: dict) -> None:
    """Writes a network, or with the label u an uncertainty network, and says so."""
    network = build_loaded(source, blocks, 'params', label)
    keep = ('network_g', 'network_u') if label == 'u' else ('network_g',)
    export_safetensors(network_weights(source), folder() / f'{name}.safetensors', {key: blocks[key] for key in keep},
                       {key: value if isinstance(value, str) else json.dumps(value)
                        for key, value in {**facts, 'weights_hash': fingerprint(network)}.items()})
    print(f'Wrote {folder() / name}.safetensors, from {source}')


def networks_of(path: Path, root: Path) -> list[tuple[dict, str, Path, str, dict]]:
    """What :func:`ship` takes, for each network of one run of the comparison.

    Raises:
        UdlError: The file is no record, of another method, or weights or history of its run are not there.
    """
    record = read_record(path)
    if record.method not in NAMES:
        raise ScoresError(f'{path}: is of the method {record.method}, expected {" or ".join(NAMES)}')
    scale, last = record.scale, root / record.weights
    method = NAMES[record.method]
    stages = record.options
    scores = {name: {k: round(v, 4) for k, v in data.mean.items()} for name, data in record.datasets.items()}
    facts = {'data': DATA, 'commit': record.commit, 'seed': record.seed, 'date': record.date,
             'machine': record.machine, 'iterations': [stage.iterations for stage in record.stages]}
    found = [(stages[-1], 'g', last, f'{method}_x{scale}', {**facts, 'training': stages, 'scores': scores})]
    if method == 'UDL':
        first = root / record.weights.replace(f'_{record.method}_', '_first_ESU_')
        history = [json.loads(line) for line in first.parents[1].joinpath('history.jsonl').read_text().splitlines()]
        validated = [line for line in history if 'psnr' in line][-1]
        facts = {**facts, 'iterations': facts['iterations'][:1]}
        found.append((stages[0], 'u', first.with_name('net_u_latest.pth'), f'ESU_x{scale}',
                      {**facts, 'training': stages[:1],
                       'scores': {validated['dataset']: {k: round(validated[k], 4) for k in ('psnr', 'ssim')}}}))
    for _, _, source, _, _ in found:
        network_weights(source)  # which says what is wrong with them
    return found


def card() -> str:
    """The model card of all that lies in the folder."""
    rows, hashes, options = [], [], {}
    for path in sorted(folder().glob('*.safetensors'), key=lambda p: (p.stem.split('_')[1], p.stem.split('_')[0])):
        facts = safetensors_metadata(path)
        method, scale = path.stem.split('_x')
        scores, options = json.loads(facts['scores']), json.loads(facts['training'])[0]
        cells = [f'{s["psnr"]:.2f} / {s["ssim"]:.4f}' if (s := scores.get(name)) else '–'
                 for name in ('Set5', 'Set14', 'BSD100')]
        steps = ' + '.join(f'{n:,}' for n in json.loads(facts['iterations']))
        rows.append(f'| `udl:{path.stem}` | ×{scale} | {LOSSES[method]} | {steps} | ' + ' | '.join(cells) + ' |')
        hashes.append(f'| {path.name} | `{hashlib.sha256(path.read_bytes()).hexdigest()}` |')
    table = ['| name | scale | loss | iterations | Set5 | Set14 | BSD100 |', '|:---|:---|:---|:---|:---|:---|:---|']
    network, data = options['network_g'], options['data']
    more = len(scales()) > 1
    calibrated = sorted(f'×{path.name.split(".")[0].split("_x")[1]}' for path in folder().glob('*.calibration.json'))
    text = CARD.format(other_scales='; `--scale` chooses another scale' if more else '',
                       other_tests='`--force_yml scale=N` for another scale, or ' if more else '',
                       calibrated=' and '.join(calibrated).replace(' and ', ', ', len(calibrated) - 2),
                       network=f'{network["num_block"]} blocks and {network["num_feat"]} channels',
                       table='\n'.join(table + rows), data=DATA, batch=data['batch_size_per_gpu'],
                       crop='×'.join(2 * [str(data['gt_size'] // options['scale'])]),
                       rate=options['train']['optim_g']['lr'], hashes='\n'.join(hashes))
    return '\n\n'.join(part if part.startswith('|') else _filled(part) for part in text.split('\n\n')) + '\n'


def _filled(paragraph: str) -> str:
    """In columns of 130: what is filled in is of any length."""
    return textwrap.fill(paragraph, 130, break_long_words=False, break_on_hyphens=False)


@exits.command()
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('records', nargs='*', type=Path, help='of methods L1 and ESU_UDL')
    parser.add_argument('--root', type=Path, default=Path(), help='where experiments/ lies; default: here')
    args = parser.parse_args(argv)
    networks = [network for record in args.records for network in networks_of(record, args.root)]
    for network in networks:  # not before all records were read
        ship(*network)
    print(f"Wrote {write_text(folder() / 'README.md', card())}")


if __name__ == '__main__':
    sys.exit(main())
