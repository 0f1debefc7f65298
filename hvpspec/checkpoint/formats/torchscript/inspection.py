"""Whether a TorchScript program does nothing but compute with tensors.

torch parses its text on its own: so that both see the same program, torch gets a text written from what was inspected.
Everything in it must be known: the kinds of statements, each operator, each class and function, which must be the
file's own.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from hvpspec.checkpoint.formats.files import damaged
from hvpspec.checkpoint.formats.torchscript.operators import (
    BUILTINS,
    OPERATORS,
    PROPERTIES,
    REACHING_OPERATORS,
    SCALAR_TYPES,
    TYPES,
)  # fmt: skip
from hvpspec.checkpoint.formats.torchscript.program import FORMAT, NotSafe, Program, is_name, module_of, text_of

_MAX_DEPTH = 150  # of nested expressions and statements, which torch parses by recursion

_STATEMENTS = (ast.Assign, ast.AnnAssign, ast.Expr, ast.If, ast.For, ast.While, ast.Pass, ast.Return)
_LITERALS = (ast.Constant, ast.List, ast.Tuple, ast.Dict, ast.Load, ast.UnaryOp, ast.USub)
_EXPRESSIONS = (
    ast.Call, ast.keyword, ast.Attribute, ast.Name, ast.Constant, ast.List, ast.Tuple, ast.Dict, ast.Subscript,
    ast.UnaryOp, ast.USub, ast.Load, ast.Store,
)  # fmt: skip


def checked_sources(program: Program, path: Path) -> dict[str, str]:
    """The source files for torch, written again. Raises NotSafe where anything in them is not known to be harmless."""
    inspection = _Inspection(program)
    try:
        for name, file in program.files.items():
            if not all(part.isidentifier() for part in module_of(name).split(".")):
                raise NotSafe("cannot be inspected")
            inspection.file(file)
        return {name: _written(file) for name, file in program.files.items()}
    except RecursionError as error:
        raise damaged(path, FORMAT, error) from error


def _written(file: ast.Module) -> str:
    """Source text, in which only strings can have letters that are not ASCII; torch takes them byte by byte."""
    text = ast.unparse(file) + "\n"
    if not text.isascii():
        text = "".join(letter if letter.isascii() else f"\\{ord(letter):03o}" for letter in text)
    return text


class _Inspection:
    """Examines every node of a program."""

    def __init__(self, program: Program) -> None:
        self._classes = program.classes
        defined = [
            f"{module_of(name)}.{getattr(part, 'name', '')}"
            for name, file in program.files.items()
            for part in file.body
        ]
        self._defined = set(defined)
        if len(self._defined) < len(defined):
            raise NotSafe("defines something twice")
        self._names = {name for one in program.classes.values() for name in (*one.attributes, *one.methods)}
        self._operators = {schema.name.partition("::")[2] for schema in torch._C._jit_get_all_schemas()}

    def file(self, file: ast.Module) -> None:
        _check_depth(file)
        for part in file.body:
            if isinstance(part, ast.FunctionDef):
                self._function(part)
            elif isinstance(part, ast.ClassDef):
                self._class(part)
            else:
                raise NotSafe("cannot be inspected")

    def _class(self, part: ast.ClassDef) -> None:
        if (
            part.decorator_list
            or part.keywords
            or not all(is_name(base, "Module") or is_name(base, "NamedTuple") for base in part.bases)
        ):
            raise NotSafe("has classes of an unknown kind")
        functions = [line for line in part.body if isinstance(line, ast.FunctionDef)]
        for line in part.body:
            if isinstance(line, ast.AnnAssign):
                self._type(line.annotation)
                self._constant(line.value)
            elif isinstance(line, ast.Assign):
                self._declaration(line)
            elif not isinstance(line, ast.FunctionDef | ast.Pass):
                raise NotSafe("cannot be inspected")
        for function in functions:
            self._function(function)
        if any(function.name in ("__setstate__", "__getstate__") for function in functions):
            raise NotSafe("has a __setstate__, which would be run when it is loaded")

    def _declaration(self, line: ast.Assign) -> None:
        """__parameters__ = ["weight", ] and __annotations__["0"] = type."""
        (target,) = line.targets
        if isinstance(target, ast.Name) and target.id.startswith("__"):
            self._constant(line.value)
        elif isinstance(target, ast.Subscript) and is_name(target.value, "__annotations__") and text_of(target.slice):
            self._type(line.value)
        else:
            raise NotSafe("cannot be inspected")

    def _constant(self, value: ast.expr | None) -> None:
        """A literal, which calls nothing."""
        for node in ast.walk(value) if value is not None else ():
            is_number = isinstance(node, ast.Name) and node.id in BUILTINS  # inf
            if not (is_number or isinstance(node, _LITERALS)):
                raise NotSafe("cannot be inspected")
            self._literal(node)

    def _literal(self, node: ast.AST) -> None:
        if isinstance(node, ast.Constant):
            value = node.value
            if isinstance(value, str) and any(ord(letter) > 255 for letter in value):
                raise NotSafe("cannot be inspected")
            if not isinstance(value, str | int | float | bool | complex | None):
                raise NotSafe("cannot be inspected")

    def _type(self, node: ast.expr | None) -> None:
        """A type: Tensor, Optional[List[int]], a class of the file's own."""
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id in TYPES:
            inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            for part in inner:
                self._type(part)
        elif isinstance(node, ast.Attribute):
            self._own(_dotted(node))
        elif not (isinstance(node, ast.Name) and node.id in TYPES) and not _is_none(node):
            raise NotSafe("has values of an unknown type")

    def _own(self, dotted: list[str]) -> None:
        """A class or function that the file defines."""
        if dotted[:3] == ["__torch__", "torch", "classes"]:
            raise NotSafe("uses classes written in C++")
        if ".".join(dotted) not in self._defined:
            raise NotSafe(f"uses '{'.'.join(dotted):.80}', which it does not define")

    def _function(self, part: ast.FunctionDef) -> None:
        given = part.args
        if part.decorator_list or given.vararg or given.kwarg or given.posonlyargs:
            raise NotSafe("cannot be inspected")
        arguments = [*given.args, *given.kwonlyargs]
        for argument in arguments:
            self._type(argument.annotation)
        self._type(part.returns)
        for default in (*given.defaults, *given.kw_defaults):
            self._constant(default)
        stored = {node.id for node in ast.walk(part) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        local = stored.union(argument.arg for argument in arguments)
        if not local.isdisjoint({"torch", "ops", "CONSTANTS", "__torch__", *BUILTINS}) or "self" in stored:
            raise NotSafe("gives its own meaning to a name of torch's")
        _Body(self, local, _known_types(part, stored)).statements(part.body)

    def operator(self, name: str, allowed: frozenset[str]) -> None:
        """An operator of torch's."""
        if name in REACHING_OPERATORS:
            raise NotSafe(f"uses '{name}', which can reach files or other machines")
        if name not in allowed:
            raise NotSafe(f"uses '{name:.80}', which is not among the operators that are known to be harmless")

    def attribute(self, name: str, kind: ast.expr | None) -> None:
        """An attribute or method of a value of a type, where it is known.

        torch looks for an operator of that name where the value's class has no such attribute.
        """
        declared = self._classes.get(".".join(_dotted(kind))) if kind is not None else None
        if declared is not None and (name in declared.attributes or name in declared.methods):
            return
        if name not in self._names or name in self._operators:
            self.operator(name, OPERATORS | PROPERTIES)

    own, type, literal = _own, _type, _literal


class _Body:
    """Examines the statements of one function. local: the names of its values. known: types of those never changed."""

    def __init__(self, inspection: _Inspection, local: set[str], known: Mapping[str, ast.expr]) -> None:
        self._inspection, self._local, self._known = inspection, local, known

    def statements(self, body: list[ast.stmt]) -> None:
        for line in body:
            if not isinstance(line, _STATEMENTS) or (
                isinstance(line, ast.Expr) and not isinstance(line.value, ast.Call)
            ):
                raise NotSafe("cannot be inspected")
            if isinstance(line, ast.For | ast.While) and line.orelse:
                raise NotSafe("cannot be inspected")
            if isinstance(line, ast.AnnAssign):
                self._inspection.type(line.annotation)
            for part in _children(line):
                self.expression(part)
            for inner in ("body", "orelse"):
                self.statements(getattr(line, inner, []))

    def expression(self, node: ast.AST) -> None:
        if not isinstance(node, _EXPRESSIONS):
            raise NotSafe("cannot be inspected")
        self._inspection.literal(node)
        if isinstance(node, ast.Attribute):
            return self._attribute(node.value, node.attr, node)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id not in self._local:
            return self._builtin(node.func.id, node)
        if isinstance(node, ast.Name) and node.id not in self._local and node.id not in BUILTINS:
            raise NotSafe(f"uses '{node.id:.80}', which it does not define")
        for part in ast.iter_child_nodes(node):
            self.expression(part)
        return None

    def _attribute(self, base: ast.expr, name: str, node: ast.AST) -> None:
        dotted = _dotted(node)
        root = dotted[0] if dotted and dotted[0] not in self._local else ""
        if root == "torch" and len(dotted) == 2:
            self._inspection.operator(name, OPERATORS)
        elif root == "ops" and len(dotted) == 3:
            if dotted[1] not in ("aten", "prim"):
                raise NotSafe(f"uses operators from outside torch ({dotted[1]:.80})")
            self._inspection.operator(name, OPERATORS if dotted[1] == "aten" else PROPERTIES)
        elif root == "__torch__":
            self._inspection.own(dotted)
        elif root == "CONSTANTS" and len(dotted) == 2:
            pass
        elif root:
            raise NotSafe(
                f"uses '{'.'.join(dotted):.80}', which is not among the operators that are known to be harmless"
            )
        else:
            kind = self._known.get(base.id) if isinstance(base, ast.Name) else None
            self._inspection.attribute(name, kind)
            self.expression(base)

    def _builtin(self, name: str, node: ast.Call) -> None:
        arguments = node.args
        if name not in BUILTINS or node.keywords:
            raise NotSafe(f"uses '{name:.80}', which is not among the operators that are known to be harmless")
        if name == "getattr":
            if len(arguments) != 2 or not text_of(arguments[1]):
                raise NotSafe("cannot be inspected")
            return self._attribute(arguments[0], text_of(arguments[1]), node)
        if name in ("annotate", "unchecked_cast", "uninitialized"):
            if len(arguments) != (1 if name == "uninitialized" else 2):
                raise NotSafe("cannot be inspected")
            self._inspection.type(arguments[0])
            if name == "unchecked_cast":
                self._cast(*arguments)
            arguments = arguments[1:]
        for argument in arguments:
            self.expression(argument)
        return None

    def _cast(self, kind: ast.expr, value: ast.expr) -> None:
        """unchecked_cast(T, x) follows a test of x. Of tuples and objects torch looks at the inside without a test of
        its own: those must come from an argument that is declared as Optional[T]."""
        if _is_simple(kind):
            return
        declared = self._known.get(value.id) if isinstance(value, ast.Name) else None
        if not (isinstance(declared, ast.Subscript) and is_name(declared.value, "Optional")) or (
            ast.dump(declared.slice) != ast.dump(kind)
        ):
            raise NotSafe("has a value whose type cannot be known beforehand")


def _known_types(part: ast.FunctionDef, stored: set[str]) -> dict[str, ast.expr]:
    """The types of arguments that keep their value, and of names that are declared wherever they get one."""
    known = {
        argument.arg: argument.annotation
        for argument in part.args.args
        if argument.annotation is not None and argument.arg not in stored
    }
    declared: dict[str, ast.expr] = {}
    alike, stores = Counter[str](), Counter[str]()  # places where a name gets a value of its type, or any value
    for node in ast.walk(part):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            stores[node.id] += 1
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            kind = declared.setdefault(node.target.id, node.annotation)
            alike[node.target.id] += ast.dump(node.annotation) == ast.dump(kind)
    for node in ast.walk(part):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name) and isinstance(node.targets[0], ast.Name):
            name, given = node.targets[0].id, known.get(node.value.id)
            if given is not None and name in declared:
                alike[name] += ast.dump(given) == ast.dump(declared[name])
    known.update((name, kind) for name, kind in declared.items() if alike[name] == stores[name])
    return known


def _is_simple(kind: ast.expr) -> bool:
    if (
        isinstance(kind, ast.Subscript)
        and isinstance(kind.value, ast.Name)
        and kind.value.id in ("List", "Dict", "Optional", "Union")
    ):
        return all(
            _is_simple(part) for part in (kind.slice.elts if isinstance(kind.slice, ast.Tuple) else [kind.slice])
        )
    return _is_none(kind) or (isinstance(kind, ast.Name) and kind.id in SCALAR_TYPES)


def _is_none(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _children(line: ast.stmt) -> Iterator[ast.AST]:
    """The expressions of a statement, without the statements inside it."""
    for node in ast.iter_child_nodes(line):
        if not isinstance(node, ast.stmt) and node is not getattr(line, "annotation", None):
            yield node


def _dotted(node: ast.AST) -> list[str]:
    """a.b.c as its parts; empty where it begins with something other than a name."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return [node.id, *reversed(parts)] if isinstance(node, ast.Name) else []


def _check_depth(tree: ast.AST) -> None:
    level = [tree]
    for _ in range(_MAX_DEPTH):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        if not level:
            return
    raise NotSafe("is nested too deeply to be inspected")
