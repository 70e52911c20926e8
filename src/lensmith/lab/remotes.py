"""What every DVC remote of this lab must be: verified on download, and without a secret in a file that git holds."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from lensmith.lab import dvc
from lensmith.process.errors import InputError

# Options of a remote that are a secret themselves, whatever its kind; `dvc.config_schema` lists all options.
SECRETS = (
    "access_key_id", "secret_access_key", "session_token", "sse_customer_key", "password", "passphrase", "token",
    "custom_auth_header", "connection_string", "sas_token", "account_key", "client_secret", "oss_key_id",
    "oss_key_secret", "gdrive_client_secret",
)  # fmt: skip


def check(root: Path) -> list[str]:
    """The names of the remotes of the DVC repository in `root`; none where it is no repository.

    Raises:
        InputError: the first remote that does not verify what it downloads, or a secret that git would keep.
    """
    for line in faults(root):
        raise InputError(line)
    return list(dvc.config(root).get("remote", {})) if (root / ".dvc").is_dir() else []


def faults(root: Path) -> Iterator[str]:
    """A line for each thing that is wrong, with the command that mends it. No line repeats a secret."""
    if not (root / ".dvc").is_dir():
        return
    config = dvc.config(root)
    for name, options in config.load_one("repo")["remote"].items():
        for option in SECRETS:
            if option in options:
                yield (
                    f".dvc/config: remote {name} holds {option}, and git keeps that file. Run `dvc remote modify "
                    f"--unset {name} {option}`, revoke that key, and put a new one into the environment or "
                    f"into .dvc/config.local (`dvc remote modify --local {name} {option} …`)."
                )
        if urlsplit(str(options.get("url", ""))).password:
            yield (
                f".dvc/config: the url of remote {name} holds a password, and git keeps that file. Run "
                f"`dvc remote modify {name} url …` without it, and change that password."
            )
    for name, options in config.get("remote", {}).items():
        if str(options.get("verify", "")).lower() != "true":
            yield (
                f".dvc/config: remote {name} does not verify what it downloads, so a broken transfer could go "
                f"unnoticed. Run `dvc remote modify {name} verify true`."
            )
