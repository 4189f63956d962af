"""What a cell's numbers depend on besides its settings: the code that trains it, and the libraries. No torch.

The fingerprint of the code is computed, not listed: it starts at the modules in `ENTRY_POINTS` and at the method's own,
and follows every import of this package. Only what runs counts. Comments, docstrings, formatting, type-checking imports
and the names and folders of files do not, so that code can be explained and moved without making a record stale; a
changed constant, operator or library call in any of these modules does.

A module's digest covers its syntax tree, in which each import of another module of ours is replaced by that module's
digest. Imports form no circles (a test keeps it so), hence the recursion ends.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from lora_bench import methods

PACKAGE = "lora_bench"
ROOT = Path(__file__).parent
# From rows to tokens; from tokens to trained values and scores. Everything that decides a number is reached from here.
ENTRY_POINTS = ("data", "data.tokens", "engine.trainer")
# What an error says and how text is printed decide no number.
WORDING = frozenset({"errors", "text"})
LIBRARIES = ("torch", "transformers", "tokenizers")
_IGNORED_FIELDS = frozenset({"ctx", "kind", "type_comment", "type_ignores"})


@cache
def code(method: str, root: Path = ROOT) -> str:
    """The fingerprint of the code that decides the numbers of a method, as 12 hexadecimal digits.

    A method of a user's own file counts with what it inherits from this package; the file itself is hashed in the
    cell's `origin`.

    Args:
        method: The method's name.
        root: The folder of the package.
    """
    inherited = {base.__module__ for base in type(methods.get(method)).__mro__}
    own = {name.removeprefix(f"{PACKAGE}.") for name in inherited if name.startswith(f"{PACKAGE}.")}
    digests = {module_digest(root, name) for name in own.union(ENTRY_POINTS)}
    return _sha256("\n".join(sorted(digests)))[:12]


def modules_behind(method: str, root: Path = ROOT) -> set[str]:
    """The modules of this package whose code decides the numbers of a method, by name within the package."""
    inherited = {base.__module__ for base in type(methods.get(method)).__mro__}
    waiting = [name.removeprefix(f"{PACKAGE}.") for name in inherited if name.startswith(f"{PACKAGE}.")]
    waiting += ENTRY_POINTS
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += _read(root, name).ours
    return seen


@cache
def module_digest(root: Path, name: str) -> str:
    """SHA-256 of what a module does, in hexadecimal digits; `name` is relative to the package at `root`."""
    module = _read(root, name)
    replaced = {bound: module_digest(root, target) for bound, target in module.module_names.items()}
    imported = sorted(f"{bound}={module_digest(root, target)}.{what}" for bound, (target, what) in module.names.items())
    tree = _RenameModules(replaced).visit(module.tree)
    return _sha256("\n".join([*module.libraries, *sorted(replaced.values()), *imported, _dump(tree)]))


class _Module:
    """A module's syntax tree without its imports, and the imports: of libraries as text, of this package by target."""

    def __init__(self, root: Path, path: Path) -> None:
        self._root = root
        self.libraries: list[str] = []
        self.module_names: dict[str, str] = {}  # local name of an imported module of ours -> the module
        self.names: dict[str, tuple[str, str]] = {}  # local name -> module of ours and the name there
        self.tree = _Stripper(self).visit(ast.parse(path.read_bytes()))
        self.libraries.sort()

    @property
    def ours(self) -> set[str]:
        """The modules of this package that it imports."""
        return {*self.module_names.values(), *(target for target, _ in self.names.values())}

    def add(self, node: ast.Import | ast.ImportFrom) -> None:
        """Note what an import statement imports."""
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
            self.module_names[bound] = name

    def _add_name(self, bound: str, module: str, name: str) -> None:
        if module and module not in WORDING:  # the package itself holds only its version
            self.names[bound] = module, name


class _Stripper(ast.NodeTransformer):
    """Drops what does nothing when the code runs, and hands the imports to their module."""

    def __init__(self, module: _Module) -> None:
        self._module = module

    def visit_Import(self, node: ast.Import) -> None:
        self._module.add(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        self._module.add(node)

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        """A constant by itself is a docstring, or as good as a comment."""
        return None if isinstance(node.value, ast.Constant) else node

    def visit_If(self, node: ast.If) -> ast.AST | None:
        """Imports for type checking never run."""
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return None
        return self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.Raise:
        """The wording of an error decides no number; that there is one, and of which kind, may."""
        if isinstance(node.exc, ast.Call):
            node.exc = node.exc.func
        return node


class _RenameModules(ast.NodeTransformer):
    """Puts the digest of a module of ours in the place of its local name, which follows the file's."""

    def __init__(self, digests: Mapping[str, str]) -> None:
        self._digests = digests

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name(self._digests.get(node.id, node.id), node.ctx)


@cache
def _read(root: Path, name: str) -> _Module:
    path = _path_of(root, name)
    if path is None:
        raise ModuleNotFoundError(f"{PACKAGE}.{name}", name=name)
    return _Module(root, path)


def _path_of(root: Path, name: str) -> Path | None:
    place = root.joinpath(*name.split("."))
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)


def _dump(node: object) -> str:
    """A syntax tree as text that is the same in every version of Python (`ast.dump` is not: it grows new fields)."""
    return "".join(_parts(node))


def _parts(node: object) -> Iterator[str]:
    if isinstance(node, ast.AST):
        yield f"{type(node).__name__}("
        for field, value in ast.iter_fields(node):
            if field not in _IGNORED_FIELDS and value is not None and value != []:
                yield f"{field}="
                yield from _parts(value)
                yield ","
        yield ")"
    elif isinstance(node, list):
        yield "["
        for each in node:
            yield from _parts(each)
            yield ","
        yield "]"
    else:
        yield f"{type(node).__name__}:{node!r}"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def current(method: str) -> dict[str, str]:
    """What the numbers of a method depend on now: the code's fingerprint and the libraries' versions."""
    return {"code": code(method), **versions_of(*LIBRARIES)}


def differences(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The fields that have changed, in words.

    A field that either side lacks has not changed, and builds of one version (`2.13.0+cpu`) count as one.
    """
    return [
        f"{field} {then[field]}, now {value}"
        for field, value in now.items()
        if field in then and value != "missing" and then[field].partition("+")[0] != value.partition("+")[0]
    ]


def versions_of(*names: str) -> dict[str, str]:
    """The versions of installed packages; `missing` for one that is not installed."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "missing"
    return versions
