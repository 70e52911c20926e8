"""Ask git about the repository that holds the working directory."""

import subprocess

# What `dvc repro` itself rewrites in git, in each lab of a repository; all else in git decides what is computed.
GENERATED = ("dvc.lock", "metrics/*.json", "plots/.gitignore", "plots/**/*.csv", "resolved/*/*.json")


def run(*words: str) -> str | None:
    """The output of a git command without white space at its ends; None where it fails or there is no git."""
    try:
        output = subprocess.run(["git", *words], capture_output=True, text=True, check=True)  # noqa: S603, S607
    except (OSError, subprocess.CalledProcessError):
        return None
    return output.stdout.strip()


def uncommitted(*, untracked: bool) -> str | None:
    """The first file of the repository that is not as committed and that no stage wrote; "" where there is none.

    None outside git. `untracked` counts files that git does not track.
    """
    excluded = (f":(top,exclude,glob)**/{pattern}" for pattern in GENERATED)
    changed = run("status", "--porcelain", f"--untracked-files={'all' if untracked else 'no'}", "--", ":/", *excluded)
    return changed and changed.splitlines()[0].split(maxsplit=1)[-1]
