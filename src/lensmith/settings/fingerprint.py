"""Fingerprints of the code that a stage runs, so that only an edit which can change its result makes it stale.

The fingerprint of a stage is one hash for each file in the import closure of its script: of the file's syntax tree
without docstrings (comments are not in the tree at all). Imports are found by reading the code, never by running it,
also those inside functions. A module outside the repository is left out: its version is pinned elsewhere. Templates
count as code of the modules beside them.
"""

import ast
import functools
import hashlib
import itertools
from pathlib import Path

from lensmith.files import artifacts
from lensmith.process.errors import InputError

# Where an import's first name is looked for, relative to the repository: `lensmith` is below src.
ROOTS = (Path("src"), Path())

# Where a package keeps the templates that its modules fill.
TEMPLATES = "templates"

# Files that cannot change a stage's result, each with its reason. What they import does not count either.
RESULT_FREE = {
    "src/lensmith/__init__.py": "re-exports the API; a stage imports modules by their full names",
    "src/lensmith/files/cache.py": "where caches lie and who holds them; readers check what a cache holds",
    "src/lensmith/hub/errors.py": "messages",
    "src/lensmith/process/amounts.py": "messages",
    "src/lensmith/process/command.py": "arguments and exit codes",
    "src/lensmith/process/credentials.py": "what a message or a child process may not hold",
    "src/lensmith/process/environment.py": "names of variables that decide where and when, not what",
    "src/lensmith/process/errors.py": "messages",
    "src/lensmith/process/git.py": "the commit that provenance records; no number depends on it",
    "src/lensmith/process/offline.py": "denies the network; a stage fails or does the same",
    "src/lensmith/process/progress.py": "messages",
    "src/lensmith/process/stopping.py": "signals; a stage that is stopped has no result",
    # Else an edit of what loads a model would make every text of the Hub stale.
    "src/lensmith/source/sampling.py": "in `corpus.inputs` of the models that write their own text, see `resolved`",
    # DVC compares the values of a stage's own sections by themselves: a new gate's limit must not refit every lens.
    "src/lensmith/settings/sections.py": "the schema of params.yaml",
    "src/lensmith/settings/values.py": "the schema of params.yaml",
}


def fingerprint(script: Path, root: Path) -> dict[str, str]:
    """sha256 by path (relative to `root`) of every file that `script` imports, itself included.

    Raises:
        InputError: a file has a syntax error, or a relative import.
    """
    hashes: dict[str, str] = {}
    todo = [script]
    while todo:
        path = todo.pop()
        name = path.relative_to(root).as_posix()
        if name in hashes or name in RESULT_FREE:
            continue
        try:
            hashes[name], modules = _read(path.read_bytes())
        except SyntaxError as error:
            raise InputError(f"{path}:{error.lineno}: {error.msg}. Nothing was changed.") from None
        for template in path.parent.glob(f"{TEMPLATES}/*"):
            hashes[template.relative_to(root).as_posix()] = artifacts.sha256_file(template)
        # An import runs the __init__ of each package on the way, and the module itself.
        for parts in (module.split(".") for module in modules):
            for base, depth in itertools.product(ROOTS, range(1, len(parts) + 1)):
                stem = root.joinpath(base, *parts[:depth])
                todo += [file for file in (stem.with_suffix(".py"), stem / "__init__.py") if file.is_file()]
    return dict(sorted(hashes.items()))


def of_source(text: str) -> str:
    """The hash that a module with this text has in a fingerprint."""
    return _read(text.encode())[0]


@functools.cache  # most files belong to several stages
def _read(source: bytes) -> tuple[str, frozenset[str]]:
    """sha256 of a module's syntax tree without docstrings, and the full names of what it imports."""
    tree, modules = ast.parse(source), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = node.body[ast.get_docstring(node, clean=False) is not None :]
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise SyntaxError("relative import; name the module in full", ("", node.lineno, 0, ""))
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), frozenset(modules)
