"""One error tree: what a command tells its user, and the exit code it ends with.

Bad input, broken numbers and lost files are results that a caller acts on, so each has a class and
a code. Anything else that escapes is our own bug: a traceback and exit code 1.
"""

import unicodedata

# Categories of what moves the cursor, changes colours or direction, or cannot be printed at all.
UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
LINE, QUOTE = 2000, 200  # characters of a whole message, and of what it quotes
TAIL = 80


def shown(text: object, longest: int = QUOTE) -> str:
    """Text as a terminal or a log may print it: one line, not endless, in which an escape is shown and does not act."""
    whole = str(text)
    # Whoever wrote the middle, the end of a message is ours: what was kept.
    cut = f"{whole[: longest - TAIL]} … {whole[-TAIL:]}" if len(whole) > longest else whole
    if cut.isascii() and cut.isprintable():
        return cut
    return "".join(_escaped(char) if unicodedata.category(char) in UNSEEN else char for char in cut)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode()


def first_line(error: BaseException) -> str:
    """The first line of an error's message without its full stop; the error's class where it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


class LensmithError(Exception):
    """A failure that its message explains: where, what was found, what is allowed, what was kept."""

    exit_code = 1


class InputError(LensmithError):
    """A value, file or argument that the user gave cannot be used."""

    exit_code = 2


class NumericError(LensmithError):
    """A computation left the finite numbers, or the model did not pass its proof."""

    exit_code = 3


class IntegrityError(LensmithError):
    """A file is not the one that was recorded: wrong hash, truncated, missing."""

    exit_code = 4


class RemoteError(LensmithError):
    """A server refused or could not be reached; trying again may help."""

    exit_code = 5


class ResourceError(LensmithError):
    """Disk or memory does not suffice."""

    exit_code = 7
