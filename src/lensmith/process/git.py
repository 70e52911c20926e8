"""Ask git about the repository that holds the working directory."""

import subprocess

# What `dvc repro` itself rewrites in git; everything else in git decides what is computed.
GENERATED = ("dvc.lock", "metrics", "plots", "resolved")


def run(*words: str) -> str | None:
    """The output of a git command without white space at its ends; None where it fails or there is no git."""
    try:
        output = subprocess.run(["git", *words], capture_output=True, text=True, check=True)  # noqa: S603, S607
    except (OSError, subprocess.CalledProcessError):
        return None
    return output.stdout.strip()
