"""Processes that are killed, under torchrun and alone, and disks that take no more."""
import errno
import importlib.util
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import assert_same_weights

from killing import equality, processes
from udl_basicsr.models import validation
from udl_basicsr.training import launch, stages
from udl_basicsr.utils.checkpoints import CheckpointError, read_checkpoint, save_atomic

ROOT = Path(__file__).resolve().parents[1]
_SGD = 'train:optim_g={type: SGD, lr: 0.01}'  # Adam's first steps are signs, which amplify rounding


class Torchrun:
    """``plain.yml`` trained by two processes that find each other by gloo."""

    def __init__(self, project, *force, restarts=0):
        with socket.socket() as probe:
            probe.bind(('127.0.0.1', 0))
            port = probe.getsockname()[1]
        (project.root / 'entry.py').write_text(
            'from pathlib import Path; from udl_basicsr.train import main; main(Path.cwd())')
        self.output = project.root / 'output.txt'
        with open(self.output, 'wb') as file:
            self.process = subprocess.Popen(
                [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2', f'--master_port={port}',
                 f'--max-restarts={restarts}', 'entry.py', '-opt', 'plain.yml', '--launcher', 'pytorch',
                 '--force_yml', *force],
                cwd=project.root, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
                env={**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'PYTHONUNBUFFERED': '1'})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def kill_rank_1(self) -> None:
        children = Path(f'/proc/{self.process.pid}/task/{self.process.pid}/children').read_text().split()
        rank_1, = (int(p) for p in children if b'\0RANK=1\0' in Path(f'/proc/{p}/environ').read_bytes())
        os.kill(rank_1, signal.SIGKILL)

    def wait_for(self, there) -> None:
        end = time.monotonic() + 200
        while not there():
            assert self.process.poll() is None, self.output.read_text()
            assert time.monotonic() < end, self.output.read_text()
            time.sleep(0.01)


def resumed_at(log: str) -> list[int]:
    return [int(n.replace(',', '')) for n in re.findall(r'Resuming training from epoch: *\d+, iter: *([\d,]+)\.', log)]


@pytest.mark.skipif(sys.platform != 'linux', reason='finds the process of a rank by /proc')
def test_a_dead_rank_is_restarted_once_and_then_ends_the_run(project):
    """torchrun's --max-restarts resumes from the last state; when it has no more, there is an error and no hang."""
    states = project.root / 'experiments' / 'plain' / 'training_states'
    force = (_SGD, 'val=~', 'logger:save_checkpoint_freq=10')

    def last_state() -> int:
        return max((int(state.stem) for state in states.glob('*.state')), default=0)

    with Torchrun(project, *force, 'datasets:train:batch_size_per_gpu=2', 'train:total_iter=1000000',
                  'logger:keep_last=3', restarts=1) as run:
        run.wait_for(lambda: last_state() >= 20)
        run.kill_rank_1()
        run.wait_for(lambda: resumed_at(project.log('plain')))
        first = resumed_at(project.log('plain'))[0]
        run.wait_for(lambda: last_state() >= first + 20)
        run.kill_rank_1()
        killed = time.monotonic()
        assert run.process.wait(100) != 0
        assert time.monotonic() - killed < 60
    assert first >= 20
    assert not list(project.root.rglob('*_latest.pth'))

    # One process with the doubled batch ends it, and goes the whole way in one go: the same but for rounding.
    total = last_state() + 5
    stages.train(project.parse('plain', *force, f'train:total_iter={total}', auto_resume=True))
    assert resumed_at(project.log('plain'))[-1] == total - 5
    assert 'world size 2 -> 1' in project.log('plain')
    stages.train(project.parse('plain', *force, f'train:total_iter={total}', 'name=one'))
    assert_same_weights(project.weights('plain'), project.weights('one'), rtol=1e-4, atol=1e-5)


def test_an_error_ends_the_process_though_workers_hear_no_signal(project):
    code = """
from pathlib import Path
from udl_basicsr.models.step import StepModel
from udl_basicsr.train import main
StepModel.optimize_parameters = lambda self, iteration: {}['unforeseen']
main(Path.cwd())
"""
    done = subprocess.run(
        [sys.executable, '-c', code, '-opt', 'plain.yml', '--force_yml', 'datasets:train:num_worker_per_gpu=2'],
        cwd=project.root, capture_output=True, text=True, timeout=150,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''})
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("KeyError: 'unforeseen'")


def test_what_a_killed_process_was_writing_is_cleared_away(project):
    stages.train(project.parse('plain', 'train:total_iter=4'))
    run = project.root / 'experiments' / 'plain'
    (run / 'models' / '.net_g_8.pth.123.part').write_bytes(b'half of it')
    (run / 'training_states' / '.8.state.123.part').touch()
    stages.train(project.parse('plain', auto_resume=True))
    assert 'iterations 5 to 8' in project.log('plain')
    assert not list(run.rglob('*.part'))


# ------------------------------------------------------------------------------------------------------------ chaos.py


@pytest.fixture(scope='module')
def chaos():
    spec = importlib.util.spec_from_file_location('chaos', ROOT / 'scripts' / 'chaos.py')
    module = importlib.util.module_from_spec(spec)
    sys.modules['chaos'] = module  # dataclasses look there for the types
    spec.loader.exec_module(module)
    yield module
    del sys.modules['chaos']


def test_chaos_sees_every_bit():
    one = {'params': {'w': torch.tensor([0.0, 1.0])}, 'iter': 3, 'best': [{'val': 1.5}], 'none': None}
    same = {'params': {'w': torch.tensor([0.0, 1.0])}, 'iter': 3, 'best': [{'val': 1.5}], 'none': None}
    assert equality.equal(one, same)
    for key, other in (('params', {'w': torch.tensor([-0.0, 1.0])}),  # equal as numbers
                       ('params', {'w': torch.tensor([0.0, 1.0 + 2**-23])}),
                       ('params', {'w': torch.tensor([0.0, 1.0], dtype=torch.float64)}), ('params', {}), ('iter', 4),
                       ('best', [{'val': 1.5}, {}]), ('none', 0)):
        assert not equality.equal(one, {**same, key: other}), (key, other)
    assert equality.equal({'w': torch.tensor(float('nan'))}, {'w': torch.tensor(float('nan'))})


def test_chaos_compares_records_without_their_times(tmp_path):
    contents = []
    for number, (seconds, iterations) in enumerate(((1., 35), (2., 35), (1., 36))):
        file = tmp_path / f'{number}.json'
        file.write_text(json.dumps({'seed': 0, 'seconds': seconds,
                                    'stages': [{'name': 'esu', 'iterations': iterations, 'seconds': seconds}]}))
        contents.append(equality.content(file))
    assert equality.equal(contents[0], contents[1])
    assert not equality.equal(contents[0], contents[2])


@pytest.mark.parametrize(('text', 'began', 'last'), [
    ('Loading ...\n', None, (None, None, 'start-up')),
    ('  name: chaos_ESU\n  scale: 2\n', None, ('chaos_ESU', None, 'start-up')),
    ('  name: chaos_ESU\n  scale: 2\n12 training images, iterations 21 to 80.\n', ('chaos_ESU', 20),
     ('chaos_ESU', None, 'training')),
    ('  name: chaos_ESU\n\n12 training images, iterations 1 to 80.\n[epoch:  0, iter:      40, lr:(1,)]\n',
     ('chaos_ESU', 0), ('chaos_ESU', 40, 'validation')),
    ('  name: chaos_ESU\n\n12 training images, iterations 71 to 80.\n[epoch:  0, iter:      80, lr:(1,)]\nValidation\n'
     '  name: chaos_UDL\n\n12 training images, iterations 1 to 80.\n[epoch:  0, iter:   1,040, lr:(1,)]\nValidation\n',
     ('chaos_ESU', 70), ('chaos_UDL', 1040, 'training')),
    ('  name: chaos_ESU\n\n12 training images, iterations 71 to 75.\n[epoch:  0, iter:      75, lr:(1,)]\n'
     'End of training. Time consumed: 0\n', ('chaos_ESU', 70), ('chaos_ESU', 75, 'last validation')),
    ('  name: chaos_UDL\n      name: demo_train\ncache: computing the uncertainty of 12 training images once.\n', None,
     ('chaos_UDL', None, 'cache')),
    ('  name: chaos_UDL\ncache: computing the uncertainty of 12 training images once.\n12 maps, rounded by at most 1\n',
     None, ('chaos_UDL', None, 'start-up')),
])
def test_chaos_reads_what_a_run_said(chaos, text, began, last):
    assert chaos.began_at(text) == began
    assert chaos.last_step(text) == last


def test_chaos_tells_a_kill_that_was_not_resumed(chaos, tmp_path):
    run, chain = chaos.Chaos(2, 0, tmp_path, tmp_path), chaos.Chain(tmp_path / 'training_1', tmp_path)
    run.kills = [chaos.Kill(n, 'training_1', chaos.MOMENT, 1.0, None, None, 'start-up', None, None, None,
                            ('chaos_ESU', 10)) for n in (1, 2)]
    run._settle(chain, 'killed before it said anything')
    assert [kill.resumed for kill in run.kills] == [False, False]
    run._settle(chain, '  name: chaos_ESU\n12 training images, iterations 11 to 80.\n')
    assert [kill.resumed for kill in run.kills] == [True, True]
    run.kills[1].state = ('chaos_ESU', 20)
    assert [kill.resumed for kill in run.kills] == [True, False]


def test_chaos_starts_a_comparison_that_udl_compare_accepts(chaos, tmp_path):
    chain = chaos.Comparison(tmp_path / 'comparison', tmp_path)
    done = subprocess.run([*chain.command(), '--dry_run'], cwd=chain.folder, timeout=200, text=True,
                          capture_output=True, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert '4 runs, 4 to be made' in done.stdout


def test_chaos_knows_where_a_comparison_has_to_go_on(chaos, tmp_path):
    chain = chaos.Comparison(tmp_path / 'comparison', tmp_path)

    def make(*names):
        for name in names:
            file = chain.folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text('{"seconds": 1, "seed": 0}')

    experiments, first = 'experiments/chaos_L1_x2_seed0', 'experiments/chaos_first_ESU_x2_seed0/models/net_'
    assert chain.position() == ('chaos_L1_x2_seed0', 0)
    make(f'{experiments}/training_states/10.state', f'{experiments}/training_states/9.state')
    assert chain.position() == ('chaos_L1_x2_seed0', 10)
    make(f'{experiments}/models/net_g_latest.pth')
    assert chain.position() == ('chaos_L1_x2_seed0', None)  # its test is to be done
    make('records/L1_x2_seed0.json', f'{first}g_latest.pth')
    assert chain.position() == ('chaos_first_ESU_x2_seed0', 0)
    make(f'{first}u_latest.pth')
    assert chain.position() == ('chaos_UDL_x2_seed0', 0)
    make('records/UDL_x2_seed0.json', 'records/L1_x2_seed1.json', 'records/UDL_x2_seed1.json')
    assert chain.position() == chaos.DONE
    assert equality.content(chain.folder / 'records/L1_x2_seed0.json') == {'seed': 0}


@pytest.mark.skipif(sys.platform != 'linux', reason='finds processes by /proc')
@pytest.mark.parametrize(('children', 'ended'), [('sleep 1', True), ('sleep 100', False)])
def test_chaos_sees_children_that_outlive_their_parent(chaos, tmp_path, children, ended):
    run = chaos.Run(['sh', '-c', f'{children} & exec sleep 100'], tmp_path, tmp_path / 'output.txt')
    while len(processes.members(run.process.pid)) < 2:
        time.sleep(0.01)
    assert (run.kill_parent(2) is not None) == ended
    while processes.members(run.process.pid):
        time.sleep(0.01)


# ---------------------------------------------------------------------------------------------------------- full disks


def command_line(project, monkeypatch, *extra) -> int:
    monkeypatch.setattr(sys, 'argv', ['train.py', '-opt', str(project.root / 'plain.yml'), *extra])
    return launch.run(stages.train, is_train=True, root_path=project.root)


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written_is_named(project, monkeypatch, capsys, number):
    def refuse(self, *args, **kwargs):
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, 'mkdir', refuse)
    assert command_line(project, monkeypatch) == 1
    assert re.search(rf'experiments/plain: {os.strerror(number)}\. What was saved before is kept\. Free '
                     'some space or check the permissions, then go on with --auto_resume', capsys.readouterr().err)


@pytest.mark.parametrize('kind', ['plain', 'log_scale'])
def test_a_picture_that_cannot_be_written_is_named(project, monkeypatch, capsys, kind):
    def full(image, path):
        if (kind == 'log_scale') == path.endswith('_log_scale.png'):
            raise OSError('Failed in writing images.')  # all that BasicSR says

    monkeypatch.setattr(validation, 'imwrite', full)
    stage = {'plain': 'plain', 'log_scale': 'esu'}[kind]
    (project.root / 'plain.yml').write_text((project.root / f'{stage}.yml').read_text())
    assert command_line(project, monkeypatch, '--force_yml', 'val:save_img=true') == 1
    assert re.search(r'visualization/\S+\.png: the image cannot be written\. What was saved', capsys.readouterr().err)


def test_any_other_error_keeps_its_traceback(project, monkeypatch):
    def fault(image, path):
        raise ConnectionRefusedError(111, 'Connection refused')

    monkeypatch.setattr(validation, '_write_image', fault)
    with pytest.raises(ConnectionRefusedError):
        command_line(project, monkeypatch, '--force_yml', 'val:save_img=true')


def test_a_full_disk_is_given_as_the_reason(tmp_path):
    """torch's writer reports that its file has another length than it thinks."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    path = tmp_path / 'net_g_1.pth'
    save_atomic({'params': {'w': torch.zeros(10)}}, path)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))
        with pytest.raises(CheckpointError, match=r'net_g_1\.pth: cannot be saved \(.*File too large\); what'):
            save_atomic({'params': {'w': torch.zeros(100_000)}}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert torch.equal(torch.load(path, weights_only=True)['params']['w'], torch.zeros(10))
    assert [p.name for p in tmp_path.iterdir()] == ['net_g_1.pth']


@pytest.mark.parametrize(('content', 'reason'), [(b'', 'it is empty'), (None, 'it is cut off')])
def test_what_is_wrong_with_a_checkpoint(tmp_path, content, reason):
    path = tmp_path / 'net_g_1.pth'
    save_atomic({'params': {'w': torch.zeros(10_000)}}, path)
    path.write_bytes(path.read_bytes()[:20_000] if content is None else content)
    with pytest.raises(CheckpointError, match=f'cannot be read: {reason}$'):
        read_checkpoint(path)
