"""A training file as a test: ``udl test`` takes the options of a test from what has been trained."""
from os import path as osp

from udl_basicsr.models.stage_table import STAGES
from udl_basicsr.utils.yaml_files import OptionError, interpolate, load_yaml

from .keys import block_of, lookup

_OF_TRAINING = {'train', 'logger', 'path', 'datasets', 'val', 'stage', 'stage1', 'rounds', 'tested_on'}
_PHASES = ('test', 'val')


def trains(flat: dict) -> bool:
    """Whether options are those of a training."""
    return isinstance(flat.get('train'), dict) and isinstance(block_of(flat, 'datasets').get('train'), dict)


def tests(flat: dict) -> bool:
    """Whether options are those of a test: they have neither what trains nor what it trains on, but sets to test on."""
    sets = block_of(flat, 'datasets')
    return not isinstance(flat.get('train'), dict) and sets.get('train') is None and any(
        str(name).startswith('test') for name in sets)


def as_test(flat: dict, file: str, root_path: str) -> dict:
    """The options of a test of what a training file trains.

    Network, scale and name are those of the training. The weights are the last ones in its folder, with the network of
    the uncertainty where the run trains one. The data sets and the block ``val`` are those of the file that
    ``tested_on`` names, or else what the training is validated on.

    Args:
        flat: Resolved options of a training.
        file: Where they stand; in the folder of a run, they belong to its weights.
        root_path: The folder of ``experiments/``, for a file elsewhere.

    Returns:
        Options of a test; they may still have references, as ``tested_on`` has.

    Raises:
        OptionError: ``tested_on`` cannot be read.
    """
    flat = interpolate(flat, file)
    on, val = flat, {k: v for k, v in block_of(flat, 'val').items() if k not in ('val_freq', 'save_best')}
    if flat.get('tested_on') is not None:
        if not isinstance(flat['tested_on'], str):
            raise OptionError(f'{file}: tested_on: expected the name of an option file, got {flat["tested_on"]!r}')
        if not osp.exists(flat['tested_on']):
            raise OptionError(f'{file}: tested_on: no such file: {flat["tested_on"]}; correct the path, or remove the '
                              'key')
        on = load_yaml(flat['tested_on'], references=False)
        val = {k: v for k, v in block_of(on, 'val').items() if k not in ('val_freq', 'save_best')}
    test = {key: value for key, value in flat.items() if key not in _OF_TRAINING and not key.startswith('network_')}
    test |= {key: on[key] for key in ('degradation', ) if key in on}
    test['network_g'] = flat.get('network_g')
    test['datasets'] = {key: block for key, block in block_of(on, 'datasets').items() if key.split('_')[0] in _PHASES}
    test['val'] = val
    models = osp.join(osp.dirname(file), 'models')
    # other folders are called models too; that of a run which has not ended has no latest weights yet
    if not (osp.isfile(osp.join(models, 'net_g_latest.pth')) or osp.isdir(osp.join(models, '../training_states'))):
        models = osp.join(root_path, 'experiments', str(flat.get('name')), 'models')
    test['path'] = {'pretrain_network_g': osp.join(models, 'net_g_latest.pth')}
    stage = flat.get('stage')
    row = STAGES.get(stage) if isinstance(stage, str) else None
    if getattr(lookup('model', flat.get('model_type')), '__module__', '').startswith('udl_basicsr.'):
        test['model_type'] = 'UDLModel'  # of TLWModel too, the weights are those of a plain network
    if row and row.trains == 'u' and 'network_u' in flat:
        test |= {'stage': stage, 'network_u': flat['network_u']}
        test['path']['pretrain_network_u'] = osp.join(models, 'net_u_latest.pth')
    return test
