"""The entry point of the command ``udl``.

It stands outside the package, whose import loads torch and registers every network: ``udl --help`` need not wait for
that. While ``answering``, ``udl_basicsr`` leaves the registering to the command (see udl_basicsr/register.py).
"""
import sys

answering = False


def main() -> None:
    """Runs ``udl`` and ends the process with its exit status."""
    global answering
    answering = True
    from udl_basicsr.cli.main import main as udl
    sys.exit(udl())
