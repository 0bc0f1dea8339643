"""Records and scores that others have made, or that were edited by hand: read whole, or refused by their name."""
import json

import pytest
from test_records import record

from udl_basicsr.experiments.printed import load_paper
from udl_basicsr.experiments.record_files import read_records
from udl_basicsr.reports.pictures import open_run
from udl_basicsr.training.history import History, read_history
from udl_basicsr.utils.json_files import JsonError, read_json
from udl_basicsr.utils.scores import ScoresError, read_scores

VALID = json.dumps(record('L1', 0, {'a': 30.25}).to_json())
STRANGE = {
    'digits': ('30.25', '1' * 5000, 'the number 11111111111111111111... has 5000 digits'),
    'power': ('30.25', '1' + '0' * 400, 'the number 10000000000000000000... has 401 digits'),
    'exponent': ('30.25', '1e400', 'the number 1e400 is larger than any'),
    'surrogate': ('"EDSR"', '"\\ud800"', r"it has half a character, '\ud800'"),
    'key': ('"a":', '"\\uDfff":', r"it has half a character, '\udfff'"),
    'brackets': ('30.25', '[' * 100_000 + ']' * 100_000, 'too many brackets within one another'),
    'cut': ('30.25', '', 'Expecting value'),
}


@pytest.mark.parametrize('kind', STRANGE)
def test_strange_values_are_refused_by_every_reader(tmp_path, kind):
    before, after, message = STRANGE[kind]
    assert before in VALID
    file = tmp_path / 'L1_x2_seed0.json'
    file.write_text(VALID.replace(before, after))
    with pytest.raises(JsonError) as error:
        read_json(file)
    assert message in str(error.value)
    for read, given in ((read_scores, file), (read_records, tmp_path), (open_run, file), (load_paper, file)):
        with pytest.raises(ValueError, match=r'L1_x2_seed0\.json') as error:
            read(given)
        assert message in str(error.value)
        assert len(str(error.value)) < 1000
        str(error.value).encode()  # it can be printed


def test_what_is_whole_is_read_as_it_is(tmp_path):
    file = tmp_path / 'L1_x2_seed0.json'
    content = {'int': -123456789012345678, 'float': -1.5e-300, 'pair': '\U0001d6e9', 'text': 'θ', 'none': None}
    file.write_text(json.dumps(content))  # the pair as \ud835\udee9
    assert read_json(file) == read_json(str(file)) == content
    file.write_text(VALID)
    assert read_records(tmp_path)[0].datasets['Set5'].mean == {'psnr': 30.25}
    file.write_text(VALID.replace('30.25', 'NaN'))
    with pytest.raises(ScoresError, match='psnr is nan'):
        read_scores(file)


@pytest.mark.parametrize('line', ['1' * 5000, '{"iter": ' + '1' * 5000 + '}', '[' * 100_000, '5', '[]', '{"iter": "x"}',
                                  '{"iter": 1', '\udcff'])
def test_a_history_ends_at_a_line_that_is_none(tmp_path, line):
    file = tmp_path / 'history.jsonl'
    file.write_text(f'{{"initial_weights": "a"}}\n{{"iter": 1}}\n{line}\n{{"iter": 2}}\n', errors='surrogateescape')
    assert read_history(file) == [{'initial_weights': 'a'}, {'iter': 1}]


def test_a_history_is_json_though_a_step_was_not_finite(tmp_path):
    file = tmp_path / 'history.jsonl'
    History(file, 0, {}).add(3, l_pix=float('nan'), grad_norm=float('inf'), skipped=1, dataset='a')
    assert file.read_text() == '{}\n{"iter": 3, "skipped": 1, "dataset": "a"}\n'
