"""What cannot be read in a figure: text that its edge cuts off, that other text or axes cover, or that covers data."""
from itertools import combinations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.transforms import Bbox

_found: list[str] = []
_original = Figure.savefig


def _area(one, other, slack=1.):
    """Square pixels that two boxes share, but for a rim of so many pixels."""
    shared = Bbox.intersection(one, other)
    return 0. if shared is None else max(shared.width - slack, 0) * max(shared.height - slack, 0)


def unreadable(figure):
    """One line for each fault of a figure that was laid out."""
    FigureCanvasAgg(figure)
    figure.set_dpi(150)  # the default; letters of a few pixels, as tests save them, are wider
    drawn, draw = [], Text.draw

    def remember(text, renderer):
        if text.get_visible() and text.get_text().strip():
            drawn.append(text)
        return draw(text, renderer)

    Text.draw = remember  # tick labels outside the limits exist, but are not drawn
    try:
        figure.canvas.draw()
    finally:
        Text.draw = draw
    boxes = [(text.get_text().replace('\n', ' / '), text.get_window_extent()) for text in drawn]
    whole, faults = figure.bbox.padded(0.5), []
    for text, box in boxes:
        if box.x0 < whole.x0 or box.y0 < whole.y0 or box.x1 > whole.x1 or box.y1 > whole.y1:
            faults.append(f'{text!r} is cut off by the edge: {box.extents.round()} in {whole.extents.round()}')
    faults += [f'{a!r} lies on {b!r}' for (a, one), (b, other) in combinations(boxes, 2) if _area(one, other)]
    for ax in figure.axes:
        inside = ax.get_window_extent()
        faults += [f'{text.get_text()!r} lies under the axes {ax.get_title()!r}' for text in drawn
                   if ax.axison and text.axes not in (ax, None) and _area(text.get_window_extent(), inside, 3.)]
        legend = next((child for child in ax.get_children() if isinstance(child, Legend)), None)
        if legend is None:
            continue
        points = [ax.transData.transform(np.column_stack([line.get_xdata(), line.get_ydata()])) for line in ax.lines
                  if len(line.get_xdata()) > 2]
        points += [ax.transData.transform(dots.get_offsets()) for dots in ax.collections
                   if isinstance(dots, PathCollection)]
        box = legend.get_window_extent()
        if any(box.contains(*point) for point in np.concatenate([*points, np.empty((0, 2))])):
            faults.append(f'the legend of {ax.get_title()!r} lies on data')
    return faults


def watch():
    """From now on every figure that is saved is looked at."""
    _found.clear()

    def savefig(figure, *args, **kwargs):
        result = _original(figure, *args, **kwargs)
        _found.extend(unreadable(figure))
        return result

    Figure.savefig = savefig


def found():
    """What could not be read since :func:`watch`, and an end of it."""
    Figure.savefig = _original
    return list(_found)


@pytest.fixture(autouse=True)
def readable():
    """In a module that imports this, whatever its tests save can be read."""
    watch()
    yield
    assert found() == []
