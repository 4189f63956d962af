"""The mutations of a module that mutation testing tries, one at a time: see `mutants.py`.

A mutant replaces one operator (of a comparison, of arithmetic, `and`, `or`), removes a `not`, changes a number, a text
or a truth value, makes a condition always true or always false, leaves out a statement, returns None, or exchanges
`break` and `continue`. In annotations only calls are changed (`Field(gt=0)`). Imports, docstrings, decorators,
f-strings and the texts of errors and warnings stay; that an error is raised does not.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

# What each operator is replaced by.
TURNED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A changed module. `owner`: the function that has changed, None where it is what runs at import."""

    line: int
    was: str
    now: str
    owner: str | None
    source: str


def changes(node: ast.AST, parent: ast.AST) -> Iterator[ast.AST]:
    """What a node is replaced by, one at a time."""
    match node:
        case ast.Compare(left, [operator], comparators):
            yield ast.Compare(left, [TURNED[type(operator)]()], comparators)  # type: ignore[list-item]
        case ast.BoolOp(operator, values):
            yield ast.BoolOp(TURNED[type(operator)](), values)  # type: ignore[arg-type]
        case ast.UnaryOp(ast.Not(), operand):
            yield operand
        case ast.BinOp(left, operator, right) if type(operator) in TURNED and not _is_type(node):
            yield ast.BinOp(left, TURNED[type(operator)](), right)  # type: ignore[arg-type]
        case ast.Constant(value) if not isinstance(parent, ast.JoinedStr | ast.FormattedValue):
            yield from (ast.Constant(other) for other in _other(value))
        case ast.stmt() | ast.IfExp():
            yield from _flow(node)


def _flow(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.If(_, body, orelse):
            yield from (ast.If(ast.Constant(always), body, orelse) for always in (True, False))
        case ast.IfExp(_, first, second):
            yield from (ast.IfExp(ast.Constant(always), first, second) for always in (True, False))
        case ast.While():
            yield ast.While(ast.Constant(False), node.body, node.orelse)
        case ast.Expr() | ast.Raise() | ast.AugAssign():
            yield ast.Pass()
        case ast.Return(value) if value is not None and not isinstance(value, ast.Constant):
            yield ast.Return(ast.Constant(None))
        case ast.Continue():
            yield ast.Break()
        case ast.Break():
            yield ast.Continue()


def _other(value: object) -> Iterator[Any]:
    match value:
        case bool():
            yield not value
        case int() | float():
            yield value + 1
        case str():
            yield value + "XX"
        case bytes():
            yield value + b"XX"


def _is_type(node: ast.BinOp) -> bool:
    return isinstance(node.op, ast.BitOr) and ast.unparse(node).endswith("None")


def sites(
    node: ast.AST, owner: str | None = None, scope: str = "", mute: bool = False
) -> Iterator[tuple[ast.AST, ast.AST, Callable[[ast.AST], None], str | None]]:
    """Every node that may be changed: its parent, itself, what puts another in its place, the function it is of."""
    for field, value in ast.iter_fields(node):
        if field in ("returns", "decorator_list", "op", "ops", "ctx") or isinstance(node, ast.Import | ast.ImportFrom):
            continue
        for at, child in enumerate(value if isinstance(value, list) else [value]):
            if not isinstance(child, ast.AST) or _is_text(child) or _is_for_types(child):
                continue
            inside = (
                owner or scope.removesuffix(".") if isinstance(node, ast.FunctionDef) and field == "body" else owner
            )
            silent = (mute or field == "annotation" or _is_message(node)) and not _is_checked(child)
            if not silent:
                yield node, child, _placing(node, field, at, value), inside
            within = f"{scope}{child.name}." if isinstance(child, ast.FunctionDef | ast.ClassDef) else scope
            yield from sites(child, inside, within, silent)


def _placing(node: ast.AST, field: str, at: int, value: Any) -> Callable[[ast.AST], None]:
    if isinstance(value, list):
        return lambda new: value.__setitem__(at, new)
    return lambda new: setattr(node, field, new)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _is_message(node: ast.AST) -> bool:
    is_message = isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("Error", ".warn"))
    return is_message or isinstance(node, ast.Raise)


def _is_checked(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "Field"


def mutants(source: str) -> Iterator[Mutant]:
    """Every mutant of a module, in the order of its lines."""
    tree = ast.parse(source)
    for parent, node, place, owner in list(sites(tree)):
        for new in changes(node, parent):
            place(new)
            was, now = (ast.unparse(each).splitlines()[0][:80] for each in (node, new))
            yield Mutant(getattr(node, "lineno", 0), was, now, owner, ast.unparse(ast.fix_missing_locations(tree)))
            place(node)
