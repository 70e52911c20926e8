"""Credentials: find them in the environment and in text, and remove them."""

import os
import re

# Whole words of a variable's name: TOKENIZERS_PARALLELISM is no credential, HF_TOKEN and MY_API_KEY are.
_WORDS = re.compile(
    r"(?:^|_)(?:TOKENS?|SECRETS?|PASSWORD|PASSWD|PASSPHRASE|PAT|CREDENTIALS?|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY)(?:_|$)"
)
# Variables that lead to a secret: a profile, a key agent, a helper that answers with a password.
_WAYS = re.compile(r"(?:AWS|AZURE|GCP|GOOGLE)_.*|SSH_AUTH_SOCK|(?:GIT|SSH)_ASKPASS|NETRC|KUBECONFIG|DOCKER_CONFIG")
_USERINFO = re.compile(r"(?<=://)[^/\s\"']+(?=@)")

# Forms of credentials, by kind.
PATTERNS = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{16,}",
    "an AWS key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a GitHub token": r"\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}",
    "an API key": r"\bsk-[A-Za-z0-9_-]{20,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a password in an address": r"://[^/\s:@\"']+:[^/\s:@\"']+@",
}
_ASSIGNED = r"(?<=[Bb]earer )\S+|(?<=_SECRET_ACCESS_KEY=)\S+|(?<=_secret_access_key=)\S+"
_LOOKS = re.compile("|".join([_ASSIGNED, *PATTERNS.values()]))
_HIDDEN = "***"
_SHORTEST = 8  # characters of a credential; replacing shorter values would garble words


def drop() -> None:
    """Remove credentials, and variables that lead to them, from the environment of this process and its children."""
    for name, value in list(os.environ.items()):
        if _WORDS.search(name.upper()) or _WAYS.fullmatch(name.upper()) or _USERINFO.search(value):
            del os.environ[name]


def redact(text: str) -> str:
    """`text` without the values of this environment's credentials, and without text that has their form."""
    values = [value for name, value in os.environ.items() if _WORDS.search(name.upper()) and len(value) >= _SHORTEST]
    for value in sorted(values, key=len, reverse=True):  # one may hold another
        text = text.replace(value, _HIDDEN)
    return _LOOKS.sub(_HIDDEN, _USERINFO.sub(_HIDDEN, text))
