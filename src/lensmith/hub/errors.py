"""Failures of the Hub and of the network as our errors: one line, without tokens."""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import httpx2
from huggingface_hub import constants, get_token, is_offline_mode
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)
from huggingface_hub.utils.tqdm import disable_progress_bars

from lensmith.hub.pins import FETCH, RepoType
from lensmith.process.errors import InputError, RemoteError, ResourceError, first_line

UNCHANGED = "Nothing was changed."
Action = Literal["read", "send", "preview"]
# The last sentence of an error.
OUTCOMES: dict[Action, str] = {
    "read": "What was downloaded stays in the cache; trying again may help.",
    "send": "A release is whole or absent: running this again finishes it.",
    "preview": "Nothing was sent.",
}


@contextmanager
def remote(kind: RepoType, repo: str, revision: str, *, action: Action = "read") -> Iterator[None]:
    """Around every use of the network; errors end in the outcome of `action`. A log gets no progress bars.

    Raises:
        RemoteError: the Hub refused, or could not be reached.
        InputError: `repo` cannot be a repository's name.
        ResourceError: the disk is full.
    """
    if not sys.stderr.isatty():
        disable_progress_bars()  # in a log file every redraw of a bar is a line
    try:
        yield
    except HFValidationError as error:
        raise InputError(f"{kind} {repo!r}: {first_line(error)}. {UNCHANGED}") from None
    except (HfHubHTTPError, EntryNotFoundError, RevisionResolutionError, httpx2.HTTPError, OSError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(
                f"{kind} {repo}@{revision}: the disk of the cache is full. {OUTCOMES['read']}"
            ) from None
        page = f"{constants.ENDPOINT}/{'' if kind == 'model' else f'{kind}s/'}{repo}"
        reason = _reason(error, page, action)
        if reason is None:
            raise
        raise RemoteError(f"{kind} {repo}@{revision}: {reason}") from None


def _reason(error: BaseException, page: str, action: Action) -> str | None:
    """What the Hub or the network did, by the causes of an error; None where they did nothing."""
    token = f"token present: {'yes' if get_token() else 'no'}"
    causes = [error]
    while cause := causes[-1].__cause__ or causes[-1].__context__:
        causes.append(cause)
    if answer := next((cause for cause in causes if isinstance(cause, HfHubHTTPError)), None):
        return _answer(answer, page, token, action)
    if is_offline_mode() and action != "read":
        return f"is not asked, since HF_HUB_OFFLINE is set. {OUTCOMES[action]}"
    if is_offline_mode():
        return f"not, or not wholly, in the local cache, and HF_HUB_OFFLINE is set. {FETCH} {UNCHANGED}"
    network = httpx2.HTTPError | EntryNotFoundError | RevisionResolutionError | ConnectionError
    if any(isinstance(cause, network) for cause in causes):
        return f"cannot be reached ({type(causes[-1]).__name__}). {OUTCOMES[action]}"
    return None


def _answer(error: HfHubHTTPError, page: str, token: str, action: Action) -> str:
    status = error.response.status_code
    if action == "send" and status in (401, 403, 404):
        return (
            f"may not be written (HTTP {status}); {token}. Sending needs a token with the scope `write`, or a "
            "fine-grained one with write access to this repository (`hf auth login`, or HF_TOKEN); "
            f"see {page}. {OUTCOMES[action]}"
        )
    if action == "send":
        return f"the Hub answered HTTP {status}; {token}. {OUTCOMES[action]}"
    # From the special to the general: each class below is a subclass of a later one.
    if isinstance(error, GatedRepoError):
        return f"needs licence acceptance at its page, {page}; {token}. {UNCHANGED}"
    if isinstance(error, RepositoryNotFoundError):
        return f"does not exist, or is private; {token}. {UNCHANGED}"
    if isinstance(error, RevisionNotFoundError):
        return f"has no such revision. {UNCHANGED}"
    return f"the Hub answered HTTP {status}; {token}. {OUTCOMES[action]}"
