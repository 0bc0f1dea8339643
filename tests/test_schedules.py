"""Learning-rate schedules of a plan, made for the length of each stage."""
# ruff: noqa: F811 - fixtures that come from plan_cases
import itertools

import pytest
from plan_cases import FILES, PLAN, write  # noqa: F401

from udl_basicsr.experiments import plan


@pytest.mark.parametrize('scheduler', [
    {'type': 'CosineAnnealingRestartLR', 'periods': [1000] * 4, 'restart_weights': [1] * 4},
    {'type': 'MultiStepRestartLR', 'milestones': [2000, 3500], 'restarts': [0, 3000], 'restart_weights': [1, 0.5]}])
def test_a_schedule_keeps_its_shape(write, tmp_path, scheduler):
    train = FILES['train.yml']
    file = write({'train.yml': {**train, 'train': {**train['train'], 'scheduler': scheduler}}}, lengths='shared',
                 first={'iterations': 1001, 'ESU': {'base': 'esu.yml'}},
                 methods={**PLAN['methods'], 'UDL': {'after': 'ESU', 'base': 'udl.yml'}})
    stages = next(run for run in plan.read_plan(file, tmp_path).runs if run.method == 'UDL').stages
    assert [stage.iterations for stage in stages] == [1001, 2999]
    for stage in stages:
        found, factor = stage.flat['train']['scheduler'], stage.iterations / 4000
        for key in {'milestones', 'restarts'} & scheduler.keys():
            assert found[key] == pytest.approx([factor * at for at in scheduler[key]], abs=0.5)
        if 'periods' in scheduler:  # BasicSR has no learning rate after the last of them
            ends = list(itertools.accumulate(found['periods']))
            assert ends == pytest.approx([factor * at for at in (1000, 2000, 3000, 4000)], abs=0.5)
            assert ends[-1] == stage.iterations
