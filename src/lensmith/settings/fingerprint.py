"""Fingerprints of the code that a stage runs, so that only an edit which can change its result makes it stale.

The fingerprint of a stage is one hash for each file in the import closure of its script: of the file's syntax tree
without docstrings (comments are not in the tree at all). Imports are found by reading the code, never by running it,
also those inside functions. A module outside the repository is left out: its version is pinned elsewhere. Templates
count as code of the modules beside them.
"""

import ast
import hashlib
from collections.abc import Iterator
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
            tree = ast.parse(path.read_bytes(), filename=str(path))
        except SyntaxError as error:
            raise InputError(f"{path}:{error.lineno}: {error.msg}. Nothing was changed.") from None
        todo += _imported_files(tree, path, root)
        hashes[name] = _hash(tree)
        for template in path.parent.glob(f"{TEMPLATES}/*"):
            hashes[template.relative_to(root).as_posix()] = artifacts.sha256_file(template)
    return dict(sorted(hashes.items()))


def of_source(text: str) -> str:
    """The hash that a module with this text has in a fingerprint."""
    return _hash(ast.parse(text))


def _hash(tree: ast.Module) -> str:
    """sha256 of a syntax tree, which loses its docstrings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = node.body[ast.get_docstring(node, clean=False) is not None :]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _imported_files(tree: ast.Module, path: Path, root: Path) -> Iterator[Path]:
    """The files that the imports of a module run: each package's __init__ on the way, and the module itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            raise InputError(f"{path}:{node.lineno}: relative import; name the module in full. Nothing was changed.")
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        package = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
        for parts in (f"{package}{alias.name}".split(".") for alias in node.names):
            for base in ROOTS:
                for depth in range(1, len(parts) + 1):
                    stem = root.joinpath(base, *parts[:depth])
                    yield from (f for f in (stem.with_suffix(".py"), stem / "__init__.py") if f.is_file())
