"""What can go wrong, said once: which input, what is wrong with it, what to do.

The command line turns :class:`InputError` into one line on standard error and exit
code 2; anything else that escapes is our fault and ends with exit code 1.
"""

from __future__ import annotations

from pathlib import Path


class OsteoprintError(Exception):
    """Base of everything this package raises on purpose."""


class InputError(OsteoprintError):
    """An input cannot be used. The message names the input, the problem and the fix.

    Parameters
    ----------
    source : what the user gave (a path, an option, an identifier).
    problem : what is wrong with it, in a few words.
    fix : what the user can do about it, in the imperative.
    """

    def __init__(self, source: str | Path, problem: str, fix: str) -> None:
        self.source = str(source)
        self.problem = problem
        self.fix = fix
        # A message is one line, whatever a library put into its own.
        super().__init__(" ".join(f"{source}: {problem}; {fix}".split()))

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, str]]:
        """So that one raised in another process arrives as it was."""
        return type(self), (self.source, self.problem, self.fix)


class ScanError(InputError):
    """A CT scan or a surface cannot be read or does not hold what it should."""


class FilmError(InputError):
    """An X-ray film cannot be read, placed or scaled."""


class BankError(InputError):
    """A bank is missing, damaged, of another version, or lacks what was asked for."""


class ModelError(InputError):
    """A model file is missing, damaged, or does not fit the bank or the films."""
