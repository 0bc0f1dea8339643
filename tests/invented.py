"""Records whose fields a test does not look at are invented."""
from udl_basicsr.experiments.record_files import Record

_REST = {'name': 'run', 'scale': 2, 'network': 'EDSR', 'weights': 'w', 'protocol': 'p', 'versions': {},
         'comparison': 'c', 'reference': 'L1', 'seed': 0, 'degradation': 'BI', 'network_title': 'EDSR', 'parameters': 1,
         'stages': [], 'options': [], 'initial_weights': 'w', 'data_order': 'd', 'seconds': 1., 'machine': 'm',
         'date': '2026-01-01', 'curve': {}}


def invented_record(**fields) -> Record:
    """A record with these fields, as a JSON file has them."""
    return Record.from_json({**_REST, 'label': fields['method'], **fields})
