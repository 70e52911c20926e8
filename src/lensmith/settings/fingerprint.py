"""Fingerprints of the code that a stage runs, so that only an edit which can change its result makes it stale.

The fingerprint of a stage is one hash for each file in the import closure of its script: of the file's syntax
tree without docstrings (comments are not in the tree at all). Imports are found by reading, never by running, also
those inside functions; one below `if TYPE_CHECKING` never runs and does not count. A module outside the repository is
left out, its version is pinned elsewhere. Templates count as code of the modules beside them.
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

# Files that cannot change a stage's result. The schema of params.yaml is one: a stage sees only the values of its own
# sections, which DVC compares by themselves; a new gate's limit must not refit every lens.
RESULT_FREE = (
    "src/lensmith/process/command.py",
    "src/lensmith/process/credentials.py",
    "src/lensmith/settings/sections.py",
    "src/lensmith/settings/values.py",
    "src/lensmith/process/errors.py",
    "src/lensmith/process/progress.py",
)


def fingerprint(script: Path, root: Path) -> dict[str, str]:
    """sha256 by path (relative to `root`) of every file that `script` imports, itself included."""
    hashes: dict[str, str] = {}
    todo = [script]
    while todo:
        path = todo.pop()
        name = path.relative_to(root).as_posix()
        if name in hashes or name in RESULT_FREE:
            continue
        tree = _parse(path)
        todo += _imports(tree, path, root)
        hashes[name] = _hash(tree)
        for template in path.parent.glob(f"{TEMPLATES}/*"):
            hashes[template.relative_to(root).as_posix()] = artifacts.sha256_file(template)
    return dict(sorted(hashes.items()))


def of_source(text: str) -> str:
    """The hash that a module with this text has in a fingerprint."""
    return _hash(ast.parse(text))


def _hash(tree: ast.Module) -> str:
    return hashlib.sha256(ast.dump(_without_docstrings(tree)).encode()).hexdigest()


def _parse(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes(), filename=str(path))
    except SyntaxError as error:
        raise InputError(f"{path}:{error.lineno}: {error.msg}. Nothing was changed.") from None


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:]
    return tree


def _imports(tree: ast.Module, path: Path, root: Path) -> Iterator[Path]:
    for node in _running(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _files(alias.name, root)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise InputError(
                    f"{path}:{node.lineno}: relative import; name the module in full. Nothing was changed."
                )
            for alias in node.names:
                yield from _files(f"{node.module}.{alias.name}", root)


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below this one but those that only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        yield child
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            for other in child.orelse:
                yield other
                yield from _running(other)
        else:
            yield from _running(child)


def _files(module: str, root: Path) -> Iterator[Path]:
    """The files that importing `module` runs: each package's __init__ on the way, and the module itself."""
    parts = module.split(".")
    for base in ROOTS:
        for depth in range(1, len(parts) + 1):
            stem = root.joinpath(base, *parts[:depth])
            for candidate in (stem.with_suffix(".py"), stem / "__init__.py"):
                if candidate.is_file():
                    yield candidate
