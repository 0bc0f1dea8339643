"""Where a training began and what it was doing last, by what it printed."""
from __future__ import annotations

import re

VAL_FREQ = 40
_NAME = re.compile(r'^ {0,2}name: (\S+)$', re.MULTILINE)  # of a run; those of its data sets stand further in


def began_at(text: str) -> tuple[str, int] | None:
    """Stage and iteration from which a process trained on, by what it printed; None if it did not come so far."""
    found = re.search(r'.* iterations (\d+) to \d+\.', text)
    names = _NAME.findall(text[:found.start()]) if found else []
    return (names[-1], int(found[1]) - 1) if names else None


def last_step(text: str) -> tuple[str | None, int | None, str]:
    """Stage and iteration of the last step that a process logged, and what it was about to do."""
    begins = list(_NAME.finditer(text))
    if not begins:
        return None, None, 'start-up'
    stage, text = begins[-1][1], text[begins[-1].end():]
    steps = list(re.finditer(r'iter: *([\d,]+), lr', text))
    iteration = int(steps[-1][1].replace(',', '')) if steps else None
    if 'End of training.' in text:
        return stage, iteration, 'last validation'
    if not steps:
        makes = 'computing the uncertainty of' in text and 'rounded by at most' not in text
        return stage, None, 'cache' if makes else \
            'training' if re.search(r' iterations \d+ to \d+\.', text) else 'start-up'
    validates = iteration % VAL_FREQ == 0 and 'Validation' not in text[steps[-1].end():]
    return stage, iteration, 'validation' if validates else 'training'
