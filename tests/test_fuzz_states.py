"""Mutated training states: a run goes on from each, or refuses it with a reason. See test_fuzz_checkpoints.py."""
import io
import logging
import os
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from basicsr.models import build_model
from conftest import Project, batch
from fuzzed_files import File, Tally, attempts, torch_files
from fuzzing import _memory  # noqa: F401 - a fixture of its module and of this one
from hypothesis import given
from hypothesis import strategies as st

from udl_basicsr.training import loop
from udl_basicsr.training.run_folder import resume_state
from udl_basicsr.training.states import essence, note_changes


@pytest.fixture(scope='module')
def trained(tmp_path_factory, pairs):
    """Runs of two iterations, with the options that going on from them takes."""
    project = Project(tmp_path_factory.mktemp('fuzzed'), pairs)
    starts = []
    sgd = ['name=sgd', 'train:optim_g={type: SGD, lr: 1e-3, momentum: 0.9}',
           'train:scheduler={type: CosineAnnealingRestartLR, periods: [8]}']
    for stage, more in (('plain', ['train:ema_decay=0.9']), ('plain', sgd),
                        ('esu', ['train:amp=fp16', 'train:skip_nonfinite=9'])):
        force = [*more, 'network_g:num_feat=4', 'train:total_iter=2', 'logger:save_checkpoint_freq=1', 'val:val_freq=1']
        loop.train(project.parse(stage, *force))
        starts.append((stage, force))
    return project, starts


def test_mutated_states(trained, monkeypatch):
    project, starts = trained
    monkeypatch.setattr(logging.root.manager, 'disable', logging.CRITICAL)  # of each network that is built
    tally = Tally('states')
    cases = []
    for stage, force in starts:
        opt = project.parse(stage, *force, 'train:total_iter=3').opt
        folder = Path(opt['path']['experiments_root'])
        for name in ('training_states/2.state', 'models/net_g_2.pth', *(['models/net_u_2.pth'] * (stage == 'esu'))):
            content = torch.load(folder / name, weights_only=True)
            cases += [(opt, folder, name, content)] * (6 if name.endswith('state') else 1)

    @attempts
    @given(st.integers(0, len(cases) - 1), st.data())
    def attempt(number, draw):
        opt, folder, name, content = cases[number]
        data = draw.draw(torch_files([content]).map(File), 'file')
        path = folder / name
        path.write_bytes(data)
        try:
            named = deepcopy(opt)
            named['path']['resume_state'] = str(folder / 'training_states' / '2.state')
            if tally.attempt(path, lambda: go_on(named)) or tally.refused % 10:
                return
            found = deepcopy(opt)
            found['auto_resume'] = True
            assert resume_state(found)['iter'] == 1  # the state before
        finally:
            torch.save(content, path)

    attempt()
    tally.report()
    assert tally.refused > 20
    assert tally.accepted > 3


def go_on(opt: dict) -> None:
    """What loop.train does with a state, up to the next one, which is written nowhere."""
    state = resume_state(opt)
    opt['path']['training_states'] = os.devnull
    model = build_model(opt)
    model.resume_training(state)
    note_changes(state, {'world_size': 2, 'options': {**essence(opt), 'train.optim_g.lr': 0.5}})
    model.update_learning_rate(3)
    model.feed_data(batch(size=2, lq=8))
    try:
        model.optimize_parameters(3)
    except FloatingPointError:
        return  # weights may be anything, and steps that are not finite are reported
    model.get_current_log()
    model._initialize_best_metric_results('val')
    model._update_best_metric_result('val', 'psnr', 20., 3)
    model.metric_results = {'psnr': 20.}
    model._log_validation_metric_values(3, 'val', None)
    torch.save({'optimizers': [o.state_dict() for o in model.optimizers], 'best': model.best_metric_results,
                'schedulers': [s.state_dict() for s in model.schedulers]}, io.BytesIO())
