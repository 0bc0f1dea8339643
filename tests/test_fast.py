"""udl train --fast and amp: auto: what is decided, what is left alone, and that a resume takes the same."""
import pytest
import torch
import yaml
from basicsr.models import build_model

from udl_basicsr.cli import train as command
from udl_basicsr.models.step import StepModel
from udl_basicsr.options.parse import OptionError
from udl_basicsr.training import fast, states
from udl_basicsr.utils import processor

_SECONDS = {('bf16', True): 0.1, ('bf16', False): 0.2, (None, True): 0.5, (None, False): 0.4}


@pytest.fixture
def machine(monkeypatch):
    """What steps take and the processor has; a test may change it."""
    seconds, flags = dict(_SECONDS), {'avx512_bf16'}
    monkeypatch.setattr(fast, 'seconds_a_step', lambda parsed, amp, last, fused: seconds[amp, last])
    monkeypatch.setattr(processor, 'features', lambda: frozenset(flags))
    for variable in ('ONEDNN_MAX_CPU_ISA', 'DNNL_MAX_CPU_ISA'):
        monkeypatch.delenv(variable, raising=False)
    return seconds, flags


def levers(flat) -> tuple:
    train, data = flat['train'], flat['datasets']['train']
    return (train.get('amp'), train.get('channels_last'), train['optim_g'].get('fused'), data.get('in_memory'),
            data.get('uncertainty_cache'))


@pytest.mark.parametrize(('flag', 'expected'), [('avx512_bf16', ('bf16', True)), ('amx_bf16', ('bf16', True)),
                                                ('avx2', (None, None))])
def test_both_stages_take_what_is_fastest_here(project, machine, flag, expected):
    machine[1].clear()
    machine[1].add(flag)
    settled = fast.settle(project.parse('udl'), True)
    assert levers(settled.flat) == (*expected, True, True, 'auto')
    assert levers(settled.stage1.flat) == (*expected, True, True, None)
    assert levers(settled.opt) == levers(settled.flat)


def test_what_the_file_says_is_left_alone(project, machine):
    said = ('train:amp=fp16', 'train:channels_last=false', 'train:optim_g={type: Adam, lr: 0.001, fused: false}',
            'datasets:train:in_memory=false')
    settled = fast.settle(project.parse('plain', *said), True)
    assert levers(settled.flat) == ('fp16', False, False, False, None)
    parsed = project.parse('plain')
    assert fast.settle(parsed, False) is parsed  # nothing without being asked


@pytest.mark.parametrize(('flag', 'amp'), [('avx512_bf16', 'bf16'), ('avx512f', None)])
def test_auto_is_bf16_in_hardware_and_nothing_else(project, machine, flag, amp):
    machine[1].clear()
    machine[1].add(flag)
    settled = fast.settle(project.parse('plain', 'train:amp=auto'), False)
    assert levers(settled.flat) == (amp, None, None, None, None)


def test_a_resume_takes_what_the_run_was_begun_with(project, machine, monkeypatch):
    monkeypatch.chdir(project.root)
    arguments = ['-opt', str(project.root / 'plain.yml'), '--fast', '--force_yml']
    assert command.main([*arguments, 'train:total_iter=4']) == 0
    saved = yaml.safe_load((project.root / 'experiments/plain/plain.yml').read_text())
    assert levers(saved) == ('bf16', True, True, True, None)
    assert 'plain is trained with bf16, channels_last, fused, in_memory' in project.log('plain')
    machine[0][None, False] = 0.01  # another day, or another machine
    (project.root / 'experiments/plain/models/net_g_latest.pth').unlink()
    assert command.main([*arguments, 'train:total_iter=6', '--auto_resume']) == 0
    assert levers(yaml.safe_load((project.root / 'experiments/plain/plain.yml').read_text())) == levers(saved)
    assert 'Not the options that the state was saved with' not in project.log('plain')


def begun(project, stage: str, *force: str) -> None:
    """A run of a stage that was stopped on its way, as its folder shows it."""
    parsed = project.parse(stage, *force)
    folder = project.root / 'experiments' / stage
    (folder / 'training_states').mkdir(parents=True)
    (folder / 'training_states' / '4.state').touch()
    (folder / f'{stage}.yml').write_text(yaml.safe_dump(parsed.flat))


def test_a_stage_that_the_chain_resumes_takes_what_it_was_begun_with(project, machine):
    """Without a word of --auto_resume in the command; the stage after it takes the same."""
    begun(project, 'esu', 'train:amp=bf16', 'train:channels_last=true')
    machine[1].clear()  # another machine
    settled = fast.settle(project.parse('udl'), True)
    assert levers(settled.stage1.flat) == ('bf16', True, None, True, None)
    assert levers(settled.flat) == ('bf16', True, None, True, 'auto')
    weights = project.root / 'experiments/esu/models/net_g_latest.pth'
    weights.parent.mkdir()
    weights.touch()  # stage 1 has ended, so that nothing goes on
    assert levers(fast.settle(project.parse('udl'), True).flat) == (None, None, True, True, 'auto')


def test_fast_changes_nothing_of_a_run_that_was_begun_without_it(project, machine):
    begun(project, 'udl')
    settled = fast.settle(project.parse('udl', auto_resume=True), True)
    assert levers(settled.flat) == (None, None, None, True, None)  # images in memory are the same images
    assert levers(settled.stage1.flat) == ('bf16', True, True, True, None)


def test_a_cache_that_comes_or_goes_is_a_change_of_the_run(project, caplog):
    without, with_one, elsewhere = (states.essence(project.parse('udl', *force).opt) for force in (
        (), ['datasets:train:uncertainty_cache=auto'], ['datasets:train:uncertainty_cache=elsewhere']))
    assert with_one == elsewhere != without
    old = {key: value for key, value in without.items() if 'cache' not in key}
    for before, now, said in ((without, with_one, True), (with_one, elsewhere, False), (old, with_one, False)):
        caplog.clear()
        states.note_changes({'run': {'options': before}}, {'options': now})
        assert ('uncertainty_cache False -> True' in caplog.text) is said


def test_several_gpus_of_one_process_are_refused_before_anything_is_timed(project, machine, monkeypatch):
    monkeypatch.setattr(project, 'gpus', 4, raising=False)
    monkeypatch.setattr(fast, 'seconds_a_step', lambda *_: pytest.fail('timed'))
    with pytest.raises(OptionError) as said:
        project.parse('plain', 'num_gpu=2', 'train:amp=bf16')
    with pytest.raises(OptionError) as refused:
        fast.settle(project.parse('plain', 'num_gpu=2'), True)
    assert str(refused.value) == str(said.value).replace('train.amp', '--fast')


@pytest.mark.parametrize('error', [torch.OutOfMemoryError('CUDA out of memory.'), MemoryError(), RuntimeError(
    'GET was unable to find an engine to execute this computation'), RuntimeError(
    'CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate')])
def test_what_does_not_fit_into_the_memory_loses(project, monkeypatch, machine, error):
    def step(parsed, amp, last, fused):
        if amp != fits:
            raise error
        return 1. + last
    monkeypatch.setattr(fast, 'seconds_a_step', step)
    monkeypatch.setattr(fast, 'give_back', lambda device: None)  # all that the tests hold is long to look through
    fits = 'bf16'
    settled = fast.settle(project.parse('plain'), True)
    assert levers(settled.flat)[:2] == ('bf16', None)
    assert 'Too large for the memory: float32 channels_last, float32.' in settled.notes[0]
    fits = 'none'
    with pytest.raises(OptionError, match=r'no step fits .*batch_size_per_gpu'):
        fast.settle(project.parse('plain'), True)
    error = RuntimeError('of another kind')
    with pytest.raises(RuntimeError, match='of another kind'):
        fast.settle(project.parse('plain'), True)


def test_every_optimiser_of_the_model_is_fused(project, machine):
    (project.root / 'tlw.yml').write_text(yaml.safe_dump({
        '_base_': '_base_.yml', 'name': 'tlw', 'model_type': 'TLWModel', 'network_u': None,
        'network_w': {'type': 'TLWNet', 'num_feat': 8},
        'train': {'tlw_opt': {'type': 'TLWLoss', 'judge': 'squeeze', 'judge_random': True, 'k_tau': 2}}}))
    settled = fast.settle(project.parse('tlw'), True)
    model = build_model(settled.opt)
    assert [optimizer.defaults['fused'] for optimizer in model.optimizers] == [True, True]
    assert model.optimizer_w.defaults['betas'] == (0.5, 0.999)  # as released, where the file says nothing


@pytest.mark.parametrize('deterministic', [True, False])
def test_steps_are_timed_with_the_kernels_of_the_training(project, monkeypatch, deterministic):
    seen = []
    monkeypatch.setattr(torch.backends.cudnn, 'benchmark', False)
    monkeypatch.setattr(StepModel, 'optimize_parameters', lambda self, _: (seen.append((
        torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled())), setattr(
            self, '_log', {'l_pix': torch.zeros(())})))
    parsed = project.parse('plain', f'deterministic={str(deterministic).lower()}', 'train:accumulate=2')
    assert fast.seconds_a_step(parsed, None, False, False) >= 0
    assert set(seen) == {(not deterministic, deterministic)}
    assert (torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled()) == (False, False)


def test_steps_are_timed_and_leave_nothing_behind(project):
    parsed = project.parse('udl')
    ticks = iter(range(100))
    assert fast.seconds_a_step(parsed, None, True, True, clock=lambda: float(next(ticks))) == 1
    assert not (project.root / 'experiments').exists()


def test_bf16_on_this_processor():
    """As Linux lists it, beside torch, which knows AMX."""
    amx = torch.cpu._is_amx_tile_supported()
    assert processor.has_bf16(torch.device('cpu')) or not amx
    assert amx or not processor.has_tiles()


@pytest.mark.parametrize(('most', 'left'), [
    ('AVX512_CORE', False), ('avx512_core_vnni', False), ('AVX2', False), ('AVX2_VNNI_2', False), ('SSE41', False),
    ('AVX512_CORE_BF16', True), ('AVX512_CORE_AMX', True), ('AVX512_CORE_FP16', True), ('AVX10_1_512', True),
    ('DEFAULT', True), ('', True), ('no such one', True)])
@pytest.mark.parametrize('variable', ['ONEDNN_MAX_CPU_ISA', 'DNNL_MAX_CPU_ISA'])
def test_onednn_may_be_told_to_do_without_bf16(machine, monkeypatch, caplog, variable, most, left):
    """As measured: a convolution in bf16 takes 10 ms, with AVX512_CORE 48, and in float32 30."""
    monkeypatch.setenv(variable, most)
    cpu = torch.device('cpu')
    assert processor.has_bf16(cpu) == left
    processor.warn_where_emulated('bf16', cpu)
    assert bool(caplog.records) != left


@pytest.mark.parametrize(('most', 'left'), [
    ('', True), ('DEFAULT', True), ('all', True), ('AVX512_CORE_AMX', True), ('avx512_core_amx_fp16', True),
    ('AVX10_1_512_AMX', True), ('AVX10_1_512', False), ('AVX512_CORE_FP16', False), ('AVX2', False)])
def test_onednn_may_be_told_to_do_without_tiles(machine, monkeypatch, most, left):
    monkeypatch.setenv('ONEDNN_MAX_CPU_ISA', most)
    assert not processor.has_tiles()
    machine[1].add('amx_bf16')
    assert processor.has_tiles() == left
    assert (processor.instructions() == 'AMX') == left


@pytest.mark.parametrize(('flags', 'told', 'expected'), [
    ({'avx512_bf16'}, '', 'AVX512_BF16'), ({'avx512_bf16'}, 'AVX512_CORE', 'AVX512'), ({'avx512f'}, '', 'AVX512'),
    ({'avx512_bf16', 'amx_bf16'}, 'AVX512_CORE_BF16', 'AVX512_BF16'), ({'bf16'}, '', 'AVX512')])
def test_the_instructions_of_a_processor_have_a_name(machine, monkeypatch, flags, told, expected):
    monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: 'AVX512')
    monkeypatch.setenv('ONEDNN_MAX_CPU_ISA', told)
    machine[1].clear()
    machine[1].update(flags)
    assert processor.instructions() == expected
