"""Super-resolution of pictures that have no ground truth: files and folders in, files out.

What is to be done is found, and refused with all that is wrong, before anything is computed or created; what is done
already is not done again; a picture that fails is reported and the others go on.
"""
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from tqdm import tqdm

from udl_basicsr.data.images import ImageError
from udl_basicsr.utils.background import Background, read_ahead
from udl_basicsr.utils.files import write_atomically

from .infer_plan import PictureJob, problem_of
from .interval_pictures import IntervalWriter, spread_picture
from .pictures import DEEP_SUFFIXES, Pixels, check_size, encode_picture, log_scale_picture, read_picture
from .restorer import Restorer


def carry_out(jobs: Iterable[PictureJob], restorer: Restorer, begin: Callable[[], None] | None = None,
              writer: IntervalWriter | None = None) -> list[str]:
    """Restores the pictures one after the other, the next being read and the last written meanwhile.

    Shows a bar with the time that is left on a terminal, else prints a line for each picture.

    Args:
        jobs: The pictures.
        restorer: The networks.
        begin: Called before the first result is written.
        writer: Of the intervals, where jobs ask for some.

    Returns:
        list: Of each picture that failed, its name and why.

    Raises:
        ValueError: A job asks for intervals, and there is no writer.
        OSError: A result cannot be written, so that it is no use to go on. Those before it are complete.
    """
    jobs, failures = list(jobs), []
    total = sum(job.header.width * job.header.height for job in jobs)
    with (tqdm(total=total, unit='px', unit_scale=True, disable=None, file=sys.stderr, dynamic_ncols=True) as bar,
          Background(1) as aside):
        finished = 0
        for number, (job, picture) in enumerate(read_ahead(jobs, _try_to_read), 1):
            bar.set_description(f'{number}/{len(jobs)} {_short(job.source.name)}')
            pixels = job.header.width * job.header.height
            share = pixels / restorer.runs(job)

            def tick(limit=finished + pixels, share=share):
                bar.update(min(share, limit - bar.n))  # runs for transparency were not foreseen

            results, problem = {}, None
            try:
                if isinstance(picture, Exception):
                    problem = picture
                else:
                    results = _restore(job, picture, restorer, tick, writer)
            except ImageError as error:
                problem = error
            finished += pixels
            bar.update(finished - bar.n)
            if problem is not None:
                failures.append(problem_of(job.source, problem))
                tqdm.write(f'{number}/{len(jobs)} FAILED {failures[-1]}', file=sys.stderr)
                continue
            line = f'{number}/{len(jobs)} {job.source} -> {", ".join(map(str, results))}'
            if begin is not None:
                aside.call(number, begin)
                begin = None
            aside.call(number, _write, results, line if bar.disable else None)
    return failures


def _short(name: str, longest: int = 32) -> str:
    """The end of a long name, so that a line of 80 columns has room for the bar."""
    return name if len(name) <= longest else f'…{name[1 - longest:]}'


def _try_to_read(job: PictureJob) -> Pixels | Exception:
    try:
        return read_picture(job.source)
    except (ImageError, OSError, MemoryError) as error:
        return error


def _restore(job: PictureJob, picture: Pixels, restorer: Restorer, tick: Callable[[], None],
             writer: IntervalWriter | None = None) -> dict[Path, Pixels]:
    results, (_, scale, _), prediction = {}, restorer.traits, None
    if job.intervals:
        if writer is None:
            raise ValueError(f'{job.source}: is to get intervals; expected a writer of them')
        prediction = restorer.prediction(picture, writer.level, tick)
    if job.sr is not None:
        height, width = picture.colour.shape[:2]
        check_size(job.sr.suffix, scale * height, scale * width)
    maps = {}  # before the picture, which comes with those of an ensemble
    if job.log_scale is not None:
        maps[job.log_scale] = log_scale_picture(prediction.log_scale) if prediction else \
            restorer.log_scale(picture, tick)
    if job.spread is not None:
        maps[job.spread] = spread_picture(restorer.disagreement(picture, tick))
    if job.sr is not None:
        bits = 8 * picture.colour.dtype.itemsize if job.sr.suffix in DEEP_SUFFIXES else 8
        results[job.sr] = restorer.sr(picture, bits, tick, prediction and prediction.planes)
    results |= maps
    if writer is not None and prediction is not None:
        results |= {path: writer.picture(kind, prediction) for kind, path in job.intervals.items()}
    return results


def _write(results: dict[Path, Pixels], line: str | None) -> None:
    for path, picture in results.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, encode_picture(picture, path.suffix))
    if line:
        print(line, flush=True)
