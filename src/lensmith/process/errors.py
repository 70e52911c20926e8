"""One error tree: what a command tells its user, and the exit code it ends with.

A caller acts on bad input, broken numbers and lost files, so each has a class and a code. Any other exception is our
own bug, unless the machine or the user explains it (`explained`).
"""

import errno
import re
import socket
import unicodedata

# Unicode categories of characters that move the cursor, change colours or direction, or cannot be printed.
UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
LINE, QUOTE = 2000, 200  # most characters of a whole message, and of what it quotes
TAIL = 80  # characters kept of the end of a longer one


def shown(text: object, longest: int = QUOTE) -> str:
    """Text that is safe to print: one line of at most `longest` characters, escapes written out."""
    whole = str(text)
    # The middle may be others', the end of a message is ours: what was kept.
    cut = f"{whole[: longest - TAIL]} … {whole[-TAIL:]}" if len(whole) > longest else whole
    if cut.isascii() and cut.isprintable():
        return cut
    unseen = {char for char in cut if unicodedata.category(char) in UNSEEN}
    return "".join(char.encode("unicode_escape").decode() if char in unseen else char for char in cut)


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


# What a machine does not have, by errno; any other failure of a file is about the path that somebody gave.
EXHAUSTED = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE,
}  # fmt: skip
KEPT = "What was finished before is kept."
OUT_OF_MEMORY = re.compile(r"can't allocate memory|out of memory")  # torch, on a CPU and on a GPU: RuntimeErrors


def explained(error: Exception) -> LensmithError | None:
    """What a failure of the machine or of the user's files means; None where only a bug of ours explains it."""
    if isinstance(error, ConnectionError | TimeoutError | socket.gaierror):
        return RemoteError(f"network: {first_line(error)}. {KEPT}")
    if isinstance(error, OSError) and error.strerror:
        # What failed in writing to a file that was open already has no name.
        where = error.filename if error.filename is not None else "disk, or the output of this command"
        kind = ResourceError if error.errno in EXHAUSTED else InputError
        return kind(f"{where}: {error.strerror}. {KEPT}")
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error))):
        return ResourceError(f"memory: there is not enough for what was asked. {KEPT}")
    if isinstance(error, RecursionError):
        return InputError(f"a file nests deeper than it can be read, some thousand levels. {KEPT}")
    if isinstance(error, UnicodeEncodeError):
        return InputError(
            f"{error.object[error.start : error.end]!r} cannot be written in {error.encoding}, the encoding of this "
            f"machine. Set PYTHONUTF8=1. {KEPT}"
        )
    return None
