"""Provenance: the code and the libraries that a cell's numbers depend on besides its settings. Does not import torch.

The fingerprint of the code covers the modules in `ENTRY_POINTS`, the method's module, `POSTERIORS` for a method with a
posterior, and every module of this package that they import, directly or not. It covers only what is executed: a
changed constant, operator or library call makes records stale, while comments, docstrings, formatting, imports for
type checking, and the names and folders of files do not. So code can be explained and moved freely.

The digest of a module is a hash of its syntax tree, in which names of other modules of this package are replaced by the
digests of these modules. Imports have no cycles (import-linter checks it), so the recursion ends.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from lora_bench import methods

PACKAGE = "lora_bench"
ROOT = Path(__file__).parent
# Reading rows, tokenizing them, and training: these modules import everything that decides a number.
ENTRY_POINTS = ("data", "data.tokens", "engine.trainer")
POSTERIORS = "engine.posterior"  # fits and scores them after the training; no other number depends on it
# The wording of errors and the printing of text decide no number.
WORDING = frozenset({"errors", "text"})
LIBRARIES = ("torch", "transformers", "tokenizers")
_IGNORED_FIELDS = frozenset({"ctx", "kind", "type_comment", "type_ignores"})


@cache
def code(method: str, root: Path = ROOT) -> str:
    """Return the fingerprint of the code that decides the numbers of a method, as 12 hexadecimal digits.

    For a user's method it covers what the method inherits from this package; the user's file itself is hashed in the
    cell's `origin`.

    Args:
        method: The method's name.
        root: The folder of the package.
    """
    digests = {module_digest(root, name) for name in _starting_points(method)}
    return _sha256("\n".join(sorted(digests)))[:12]


def modules_behind(method: str, root: Path = ROOT) -> set[str]:
    """Return the modules that the fingerprint of a method covers, by their names within the package."""
    queue = list(_starting_points(method))
    seen: set[str] = set()
    while queue:
        name = queue.pop()
        if name not in seen:
            seen.add(name)
            queue += _read(root, name).imported
    return seen


def _starting_points(method: str) -> set[str]:
    """The modules from which all others that the fingerprint covers are imported, by their names within the package."""
    recipe = methods.get(method)
    defining = {base.__module__ for base in type(recipe).__mro__}  # of the method's class and its bases
    own = {name.removeprefix(f"{PACKAGE}.") for name in defining if name.startswith(f"{PACKAGE}.")}
    return own.union(ENTRY_POINTS, {POSTERIORS} if recipe.posterior else ())


@cache
def module_digest(root: Path, name: str) -> str:
    """Return the hexadecimal SHA-256 of what a module executes; `name` is relative to the package at `root`."""
    module = _read(root, name)
    digests = {bound: module_digest(root, target) for bound, target in module.modules.items()}
    names = sorted(f"{bound}={module_digest(root, target)}.{what}" for bound, (target, what) in module.names.items())
    return _sha256("\n".join([*module.libraries, *sorted(digests.values()), *names, _dump(module.tree, digests)]))


class _Module:
    """A module's syntax tree without imports, and its imports.

    Attributes:
        libraries: The imports of libraries, as text.
        modules: The imported modules of this package, by their local names.
        names: The imported names of modules of this package, each with its module, by their local names.
        tree: The syntax tree.
    """

    def __init__(self, root: Path, path: Path) -> None:
        self._root = root
        self.libraries: list[str] = []
        self.modules: dict[str, str] = {}
        self.names: dict[str, tuple[str, str]] = {}
        self.tree = _Stripper(self).visit(ast.parse(path.read_bytes()))
        self.libraries.sort()

    @property
    def imported(self) -> set[str]:
        """The modules of this package that it imports."""
        return {*self.modules.values(), *(target for target, _ in self.names.values())}

    def add(self, node: ast.Import | ast.ImportFrom) -> None:
        """Record an import statement."""
        source = node.module or "" if isinstance(node, ast.ImportFrom) else ""
        for alias in node.names:
            target, bound = f"{source}.{alias.name}".lstrip("."), alias.asname or alias.name
            if target.partition(".")[0] != PACKAGE:
                self.libraries.append(f"{target} as {bound}")
            elif _path_of(self._root, inside := target.removeprefix(f"{PACKAGE}.")):
                self._add_module(bound, inside)
            else:
                self._add_name(bound, source.removeprefix(PACKAGE).lstrip("."), alias.name)

    def _add_module(self, bound: str, name: str) -> None:
        if name not in WORDING:
            self.modules[bound] = name

    def _add_name(self, bound: str, module: str, name: str) -> None:
        if module and module not in WORDING:  # the package itself defines only its version
            self.names[bound] = module, name


class _Stripper(ast.NodeTransformer):
    """Removes what has no effect at run time, and passes imports to their `_Module`."""

    def __init__(self, module: _Module) -> None:
        self._module = module

    def visit_Import(self, node: ast.Import) -> None:
        self._module.add(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        self._module.add(node)

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        """Remove docstrings and other constants that are statements."""
        return None if isinstance(node.value, ast.Constant) else node

    def visit_If(self, node: ast.If) -> ast.AST | None:
        """Remove imports for type checking."""
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return None
        return self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.Raise:
        """Keep only the class of a raised exception: its message decides no number."""
        if isinstance(node.exc, ast.Call):
            node.exc = node.exc.func
        return node


@cache
def _read(root: Path, name: str) -> _Module:
    path = _path_of(root, name)
    if path is None:
        raise ModuleNotFoundError(f"{PACKAGE}.{name}", name=name)
    return _Module(root, path)


def _path_of(root: Path, name: str) -> Path | None:
    """The file of a module of this package; None if there is none."""
    base = root.joinpath(*name.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def _dump(tree: ast.AST, digests: Mapping[str, str]) -> str:
    """A syntax tree as text that is the same in all versions of Python. `ast.dump` shows fields that newer ones add.

    Args:
        tree: The syntax tree.
        digests: What stands for the local names of modules of this package, since names follow those of files.
    """
    parts: list[str] = []
    _write(tree, digests, parts.append)
    return "".join(parts)


def _write(node: object, digests: Mapping[str, str], write: Callable[[str], object]) -> None:
    if isinstance(node, ast.AST):
        write(f"{type(node).__name__}(")
        for field in node._fields:
            value = getattr(node, field, None)
            if value is None or value == [] or field in _IGNORED_FIELDS:
                continue
            write(f"{field}=")
            _write(digests.get(value, value) if isinstance(node, ast.Name) else value, digests, write)
            write(",")
        write(")")
    elif isinstance(node, list):
        write("[")
        for child in node:
            _write(child, digests, write)
            write(",")
        write("]")
    else:
        write(f"{type(node).__name__}:{node!r}")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def current(method: str) -> dict[str, str]:
    """Return the present provenance of a method: the fingerprint of the code and the versions of the libraries."""
    return {"code": code(method), **versions_of(*LIBRARIES)}


def differences(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Describe each field in which two provenances differ.

    A field that is missing on either side does not count, nor do builds of one version (`2.13.0+cpu`).

    Args:
        then: The provenance of a record.
        now: The present one.
    """
    return [
        f"{field} {then[field]}, now {value}"
        for field, value in now.items()
        if field in then and value != "missing" and then[field].partition("+")[0] != value.partition("+")[0]
    ]


def versions_of(*names: str) -> dict[str, str]:
    """Return the versions of installed packages; `missing` for one that is not installed."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "missing"
    return versions
