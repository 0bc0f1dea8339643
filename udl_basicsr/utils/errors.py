"""The errors of this package: their messages are for the user, who can put right what they name."""
import contextlib
from collections.abc import Iterable, Iterator

from .text import one_line

FAILED = 1
MISUSED = 2
"""Exit status where the command, its options or its files are not what they should be: nothing has been done."""


class UdlError(Exception):
    """Something that the user can put right.

    A line break in its message is ours. Every other control character, which a file may have brought, is shown escaped.

    Args:
        problems: A message, whose lines are the problems, or the problems themselves, each of which is kept in one
            line.

    Attributes:
        problems (tuple[str, ...]): One line each.
        status (int): Exit status of a command that it ends.
    """
    status = FAILED

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = tuple(map(one_line, problems.split('\n') if isinstance(problems, str) else problems))
        super().__init__('\n'.join(self.problems))


@contextlib.contextmanager
def begun() -> Iterator[None]:
    """While active, something is being done: what goes wrong is a failure, even where what was given is to blame."""
    try:
        yield
    except UdlError as error:
        if error.status == MISUSED:
            error.status = FAILED
        raise
