"""The folder of one run: made, kept apart from older ones, locked while it is trained, and found again on resume."""
import itertools
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path

from basicsr.utils import get_root_logger, get_time_str
from torch import nn

from udl_basicsr.options.keys import lookup
from udl_basicsr.options.parse import OptionError, Parsed, dump_flat
from udl_basicsr.options.trials import build_network
from udl_basicsr.utils import locks
from udl_basicsr.utils.checkpoints import EMA_FIRST, CheckpointError, check_fit, network_weights, read_checkpoint
from udl_basicsr.utils.distributed import broadcast
from udl_basicsr.utils.errors import UdlError
from udl_basicsr.utils.files import write_atomically, write_text
from udl_basicsr.utils.settings import TrainSettings

from .states import check_state, trained_blocks

# BSD's EX_UNAVAILABLE: the run is not at hand for now. Nothing has failed, and it is no use to start it again at once.
EXIT_BUSY = 69
_STATE = re.compile(r'[0-9]+\.state')


class RunBusyError(UdlError, RuntimeError):
    """Another process trains in this folder; the message names it."""
    status = EXIT_BUSY


def make_folders(parsed: Parsed, command: str, keep: int | None = None):
    """Makes the run's folder with its resolved YAML. One that is there is kept as ``_archived_<time>``.

    Args:
        keep (int | None): Go on in the folder that is there, after so many iterations. States of later ones, which
            are broken or of a way that the run has left, are kept aside.

    Returns:
        The lock of a training run, to be held until its end, or None.

    Raises:
        RunBusyError: Another process is training in it, on all ranks alike.
    """
    lock, busy = None, None
    if parsed.opt['rank'] == 0:
        try:
            lock = _make_folders(parsed, command, keep)
        except RunBusyError as error:
            busy = str(error)
    busy = broadcast(busy)
    if busy:
        raise RunBusyError(busy)
    return lock


def _make_folders(parsed: Parsed, command: str, keep: int | None):
    opt, path = parsed.opt, parsed.opt['path']
    root = Path(path['experiments_root'] if opt['is_train'] else path['results_root'])
    lock = _lock(root) if opt['is_train'] and root.is_dir() else None
    if keep is None:
        _archive(root)
        lock = None  # it went with the folder
        if opt['is_train']:
            _archive(Path(opt['root_path']) / 'tb_logger' / opt['name'])
    if opt['is_train'] and lock is None:
        root.mkdir(parents=True, exist_ok=True)
        lock = _lock(root)
    folders = [path['visualization']]
    if opt['is_train']:
        folders += [path['models'], path['training_states']]
    for folder in folders:
        Path(folder).mkdir(parents=True, exist_ok=True)
    if lock:  # nobody else writes here: what lies aside is of a process that was killed
        for kind in ('models', 'training_states'):
            for unfinished in Path(path[kind]).glob('.*.part'):
                unfinished.unlink(missing_ok=True)
    if keep is not None:
        _leave_later_states(root, keep)
        if keep < int(opt['train']['total_iter']):  # by these the next stage would know that this one has ended
            for latest in sorted(Path(path['models']).glob('net_*_latest.pth')):
                latest.unlink()
    # Written, not copied: on resume the options may be this very file (BasicSR: SameFileError).
    head = f'# {time.asctime()}\n' + (f'# {command}\n' if command else '')
    write_text(root / options_name(parsed), head + dump_flat(parsed.flat))
    return lock


def options_name(parsed: Parsed) -> str:
    """The name of the file in which a run's folder keeps its options."""
    name = Path(parsed.file).name
    # lest a file called models or history.jsonl take the place of these
    return name if name.endswith(('.yml', '.yaml')) else f'{name}.yml'


def goes_on_from(parsed: Parsed, resumes: bool) -> Path | None:
    """The folder of the run that a training goes on from; None where it begins.

    Args:
        parsed (Parsed): Of the training.
        resumes (bool): Whether it takes the latest state of its own folder, as with ``--auto_resume``.
    """
    path = parsed.opt['path']
    folder = Path(path['training_states'])
    if resumes and _states(folder):
        return folder.parent
    return Path(path['resume_state']).parent.parent if path.get('resume_state') else None


def _archive(folder: Path) -> None:
    """Keeps what is there under another name. BasicSR's (misc.py:26) fails at the second one of a second."""
    if not os.path.lexists(folder):
        return
    aside = _name_aside(folder)
    os.rename(folder, aside)
    get_root_logger().info(f'{folder} is there from before. It is kept as {aside}')


def _name_aside(folder: Path) -> Path:
    names = (f'{folder.name}_archived_{get_time_str()}{f"_{number}" if number > 1 else ""}'
             for number in itertools.count(1))
    return next(path for path in map(folder.with_name, names) if not os.path.lexists(path))


def _leave_later_states(root: Path, done: int) -> None:
    """Else the next --auto_resume would go back to them, and ``logger.keep_last`` drop what is saved from here on.

    With their networks, which would be written over, so that a run can go on from there again; and with the best ones,
    which may be of a later iteration too.
    """
    states, models = root / 'training_states', root / 'models'
    later = [path for path in _states(states) if int(path.stem) > done]
    if later:
        aside = _name_aside(root / 'later')
        names = (*(path.stem for path in later), 'best')
        networks = [file for name in names for file in models.glob(f'net_*_{name}.pth')]
        for file in (*later, *networks):
            (aside / file.parent.name).mkdir(parents=True, exist_ok=True)
            os.rename(file, aside / file.parent.name / file.name)
        get_root_logger().warning(f'The run goes on from iteration {done}. States of later ones are kept in {aside}')


def find_best(opt: dict, labels: Iterable[str], iteration: int) -> bool:
    """Whether the networks of the best iteration so far are there, copied from beside the state where they are."""
    own, given = Path(opt['path']['models']), opt['path'].get('pretrain_network_g')
    beside = Path(given).parent if given else own
    files = {beside / f'{label}_{iteration}.pth': own / f'{label}_best.pth' for label in labels}
    if all(file.exists() for file in files):
        for file, best in files.items():
            write_atomically(best, file.read_bytes())
    return all(best.exists() for best in files.values())


def has_ended(parsed: Parsed) -> bool:
    """Whether a run has weights that count as its last, and no state says that more iterations are asked for."""
    path = parsed.opt['path']
    states = _states(Path(path['training_states']))
    return Path(path['models'], 'net_g_latest.pth').exists() and (
        not states or int(states[0].stem) >= int(parsed.opt['train']['total_iter']))


def _states(folder: Path) -> list[Path]:
    """The training states in a folder, the latest first."""
    return sorted((p for p in folder.glob('*.state') if _STATE.fullmatch(p.name)), key=lambda p: -int(p.stem))


def _lock(root: Path):
    try:
        return locks.take(root)
    except locks.HeldError as holder:
        raise RunBusyError(
            f'{root}: is being trained by {holder}. Wait for it, end it, or give this run another name') from None


def resume_state(opt: dict) -> dict | None:
    """The training state to go on from, if any; points the networks at the checkpoints saved with it.

    With ``--auto_resume`` the latest state of which every part can be read, or else the one that is named. BasicSR
    looks for it in the working directory (train.py:71) and needs a GPU to read (train.py:85).

    Raises:
        CheckpointError: The state that ``path.resume_state`` names cannot be used, or not one of all those that
            ``--auto_resume`` found.
        OptionError: The run is to end before the iteration of the state.
    """
    named = opt['path'].get('resume_state')
    chosen, problem = None, None
    if opt['rank'] == 0:
        try:
            chosen = (_latest_usable(opt) if opt['auto_resume'] else None) or (named and _check(Path(named), opt))
        except CheckpointError as error:
            problem = str(error)
    chosen, problem = broadcast((chosen and str(chosen), problem))
    if problem:
        raise CheckpointError(problem)
    if not chosen:
        return None
    state, total_iter = read_checkpoint(chosen), int(opt['train']['total_iter'])
    if state['iter'] > total_iter:
        raise OptionError(f"train.total_iter: {total_iter} is less than the {state['iter']} iterations that are done "
                          f'({chosen}); set it to more, or give this run another name')
    ignored = opt['path'].get('ignore_resume_networks') or ()
    for label, file in _networks(Path(chosen), state['iter'], opt).items():
        if f'network_{label}' in ignored:
            continue
        opt['path'][f'pretrain_network_{label}'] = str(file)
        opt['path'][f'param_key_{label}'] = 'params'
    return state


def _latest_usable(opt: dict) -> Path | None:
    folder = Path(opt['path']['training_states'])
    states, problems = _states(folder), []
    for path in states:
        try:
            _check(path, opt)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            get_root_logger().warning(f'{problem}\nGoing back to {path}, the latest state that is whole.')
        return path
    if problems:
        more = [f'... and {len(problems) - 5} earlier ones'] if len(problems) > 5 else []
        told = [*problems[:5], *more]
        raise CheckpointError('\n'.join([f'{folder}: none of the {len(states)} states can be used:', *told, (
            'Start anew without --auto_resume (this folder is then kept as _archived_<time>)')]))
    return None


def _check(path: Path, opt: dict) -> Path:
    """Finds the state and the networks saved with it whole, and those of this run."""
    state = read_checkpoint(path)
    check_state(state, path, opt)
    saved, trained = _networks(path, state['iter'], opt), trained_blocks(opt)
    expected = {'g': opt['network_g'], **{label: block for label, (block, _) in (trained or {}).items()}}
    for label in expected:
        if label not in saved:
            missing = path.parent.parent / 'models' / f"net_{label}_{state['iter']}.pth"
            raise CheckpointError(f'{missing}: missing, though {path} was saved with it')
    for label, file in saved.items():
        weights = [network_weights(file)]
        if trained and label not in expected:
            raise CheckpointError(f'{path}: was saved with {file.name}, by another stage or model than this one. Give '
                                  'this run another name')
        outline = trained and build_network(lookup('network', expected[label]['type']), expected[label])
        if isinstance(outline, nn.Module):
            if label == 'g' and TrainSettings.of(opt['train']).ema_decay:
                weights.append(network_weights(file, EMA_FIRST))  # an average may begin now
            for given in weights:
                check_fit(outline, given, file)
    return path


def _networks(state: Path, iteration: int, opt: dict) -> dict[str, Path]:
    """What lies beside a state of the networks that our models or these options have, by their labels."""
    models = state.parent.parent / 'models'
    labels = {'g', 'u', 'w', *(key.removeprefix('network_') for key in opt if key.startswith('network_'))}
    saved = {label: models / f'net_{label}_{iteration}.pth' for label in sorted(labels)}
    return {label: file for label, file in saved.items() if file.exists()}
