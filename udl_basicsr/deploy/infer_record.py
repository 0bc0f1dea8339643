"""What the results in a folder were made with, so that those of other weights or options are not mixed with them.

``<out>/.udl_infer.json``: for each ``--suffix`` the weights, by their hash, and the options that decide pixels. The
size of the tiles is none of them, since a picture that does not fit into the memory is made in tiles beside others.
"""
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udl_basicsr.data.images import SUFFIXES
from udl_basicsr.data.uncertainty_maps import fingerprint
from udl_basicsr.options.keys import lookup
from udl_basicsr.options.signatures import parameters
from udl_basicsr.utils.files import write_atomically
from udl_basicsr.utils.json_files import JsonError, read_json

from .infer_plan import MAPS, InferenceError, InferencePlan
from .restorer import Restorer

NAME = '.udl_infer.json'
_NO_MATTER = {'UncertaintyNet': {'detach', 'freeze'}}  # of gradients alone
_OF_THE_FEATURES = {'num_in_ch', 'num_out_ch', 'scale', 'num_feat'}  # of a head: found, or told by the weights' sizes


def describe(restorer: Restorer) -> dict:
    """What decides the pixels that a restorer makes, as JSON has it."""
    made_by = {**restorer.made_by, 'weights_hash': fingerprint(restorer.network),
               'self_ensemble': restorer.self_ensemble, 'spread': restorer.spread, 'amp': restorer.amp}
    if restorer.uncertainty is not None:
        made_by['uncertainty_hash'] = fingerprint(restorer.uncertainty)
    return json.loads(json.dumps(made_by, default=str))


@dataclass(frozen=True)
class FolderRecord:
    """The record of a folder, checked against what is about to be done in it."""
    file: Path
    all: dict[str, list[dict]]
    """By the suffix; more than one entry where ``--overwrite`` has not come to its end."""
    suffix: str
    others: tuple[dict, ...]
    """Entries of what other weights or options have made; an empty one of what nothing is known of."""
    now: dict

    def begin(self) -> None:
        """To be called before the first result is written."""
        self._write([*self.others, self.now])

    def finish(self, made: Iterable[Path]) -> None:
        """To be called when all is made: what others had made has been written over, but for what is not in ``made``.

        A picture that is not of this suffix, as far as its name tells, is none of theirs.
        """
        if self.others and not any(map(self._is_ours, set(_pictures(self.file.parent)) - set(made))):
            self._write([self.now])

    def _is_ours(self, path: Path) -> bool:
        stem = re.sub(f'_({"|".join(MAPS)})$', '', path.stem)
        others = [f'_{suffix}' for suffix in self.all if suffix not in ('', self.suffix)]
        return stem.endswith(f'_{self.suffix}') if self.suffix else not stem.endswith(tuple(others))

    def _write(self, entries: list[dict]) -> None:
        text = json.dumps({**self.all, self.suffix: entries}, indent=1) + '\n'
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.file, text.encode())


def check_folder(out: str | Path, suffix: str, plan: InferencePlan, restorer: Restorer, overwrite: bool,
                 intervals: Mapping[str, str] | None = None) -> FolderRecord:
    """Compares what a folder's pictures were made with to what would be made now. Nothing is written.

    ``intervals`` says which calibration makes them. A record that differs is no matter where the pictures have been
    deleted. Pictures without a record may have been made by anything, so they are not taken for results.

    Raises:
        InferenceError: The results would be mixed, and ``overwrite`` is not given; it says what differs.
    """
    file, now = Path(out) / NAME, describe(restorer) | dict(intervals or {})
    known = _read(file)
    entries = known.get(suffix, [])
    if not entries and plan.there:
        entries = [{}]
    elif entries and not plan.there and not any(_pictures(Path(out))):
        entries = []
    others = [entry for entry in entries if differences(entry, now)]
    if others and not overwrite:
        if others[0]:
            what = [f'{out}: holds pictures that were made otherwise:', *differences(others[0], now)]
        else:
            what = [f'{out}: {plan.there} of the results are there already, and nothing says which weights made them '
                    f'(there is no {NAME} of theirs)']
        raise InferenceError([*what, 'Give another --out or --suffix, or make all of them again with --overwrite'])
    for entry in entries:
        if entry not in others:  # a run without --uncertainty leaves the maps that are there, and what made them
            now = {**entry, **now}
    return FolderRecord(file, known, suffix, tuple(others), now)


def differences(there: dict, now: dict) -> list[str]:
    """What two entries differ in, a line each."""
    if not there:
        return ['all of it']
    found = []
    for key in ('weights', 'uncertainty'):
        old, new = there.get(f'{key}_hash'), now.get(f'{key}_hash')
        if old != new and (key == 'weights' or (there.get(key) and now.get(key))):
            found.append(f'  --{key}: {there.get(key)} ({str(old)[:8]}) there, {now.get(key)} ({str(new)[:8]}) now')
    found += [f'  {key}: {old} there, {new} now' for key, old, new in network_differences(there, now)]
    for key, option in (('self_ensemble', '--self_ensemble'), ('spread', '--spread'), ('amp', '--amp')):
        if (there.get(key) or None) != (now[key] or None):  # older records lack what was not there yet
            old, new = ('yes' if e.get(key) is True else e.get(key) or 'no' for e in (there, now))
            found.append(f'  {option}: {old} there, {new} now')
    found += [f'  {option}: {there[key]} there, {now[key]} now' for key, option in
              (('calibration', '--intervals'), ('within', '--within'))
              if key in there and key in now and there[key] != now[key]]
    return found


def network_differences(there: dict, now: dict) -> Iterator[tuple[str, Any, Any]]:
    """What the blocks of two entries differ in, as far as it decides pixels, whatever the weights.

    A default that one of them leaves out is the same as written out, and so is the tap that a network has by default.

    Yields:
        The dotted key, as ``network_u.head.distribution``, and both values; "not set" where there is none.
    """
    for block in ('network_g', 'network_u'):
        if not (isinstance(there.get(block), dict) and isinstance(now.get(block), dict)):
            continue  # of a run without --uncertainty
        old, new = _settings(there[block]), _settings(now[block])
        for key in dict.fromkeys([*old, *new]):
            values = old.get(key, 'not set'), new.get(key, 'not set')
            by_default = key == 'tap' and all(value in (None, now.get('default_tap')) for value in values)
            if values[0] != values[1] and not by_default:
                yield f'{block}.{key}', *values
    if isinstance(there.get('member_networks'), list):  # older entries have none
        for number, (old, new) in enumerate(zip(there['member_networks'], now.get('member_networks') or (),
                                                strict=False), 2):
            if isinstance(old, dict):
                yield from ((f'{key} of network {number}', *values) for key, *values in network_differences(old, new))


def _settings(block: dict, is_head: bool = False) -> dict[str, Any]:
    """What a network is built with, by dotted keys, with the defaults that it leaves out, as JSON has them."""
    name = str(block.get('type')).removesuffix('_basicsr')
    target = lookup('network', block.get('type'))
    known = parameters(target)[0] if target else {}
    values = {key: known[key].default for key in known if known[key].default is not known[key].empty}
    values |= {**block, 'type': name}
    if name == 'UncertaintyNet':
        head = values.get('head')
        values['head'] = {'type': 'UDLHead', **(head if isinstance(head, dict) else {})}
    found = {}
    for key, value in values.items():
        if key in _NO_MATTER.get(name, ()) or (is_head and key in _OF_THE_FEATURES):
            continue
        if isinstance(value, dict) and 'type' in value:
            found |= {f'{key}.{inner}': v for inner, v in _settings(value, key == 'head').items()}
        else:
            found[key] = json.loads(json.dumps(value, default=str))
    return found


def _pictures(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob('[!.]*') if path.suffix.lower() in SUFFIXES)


def _read(file: Path) -> dict[str, list[dict]]:
    """What can be read of it, which is nothing where somebody has written something else there."""
    try:
        found = read_json(file)
    except (OSError, JsonError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {suffix: entries for suffix, entries in found.items()
            if isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)}
