"""The source text of a TorchScript program, which has Python's grammar, and what its classes declare."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

from hvpspec.checkpoint.formats.archive import Archive
from hvpspec.checkpoint.formats.files import damaged
from hvpspec.errors import CheckpointError

FORMAT = "TorchScript archive"
_MAX_SOURCE_BYTES = 4 << 20  # a traced network of a thousand layers has one


class NotSafe(Exception):
    """A program may do more than compute with tensors. The message goes on after "holds a program that …"."""


@dataclass(frozen=True)
class ScriptClass:
    """What a class declares. attributes: the type of each, as an expression. tensors: its parameters and buffers."""

    attributes: Mapping[str, ast.expr]
    tensors: frozenset[str]
    methods: frozenset[str]
    is_module: bool


@dataclass(frozen=True)
class Program:
    """The source files of an archive, parsed, by the names of their members; and its classes by their full names."""

    files: Mapping[str, ast.Module]
    classes: Mapping[str, ScriptClass]


def read_program(archive: Archive) -> Program:
    """The program of an archive, as it declares itself. Raises CheckpointError where it cannot be parsed."""
    names = sorted(name for name in archive.names if name.startswith("code/") and name.endswith(".py"))
    if sum(map(archive.size, names)) > _MAX_SOURCE_BYTES:
        raise CheckpointError(f"{archive.path} was not read: the text of its program is too long.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about its style
            files = {name: ast.parse(archive.read(name).decode()) for name in names}
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise damaged(archive.path, FORMAT, error) from error
    classes = {
        f"{module_of(name)}.{part.name}": _declared(part)
        for name, file in files.items()
        for part in file.body
        if isinstance(part, ast.ClassDef)
    }
    return Program(files, classes)


def module_of(member: str) -> str:
    """code/__torch__/net.py → __torch__.net."""
    return member.removeprefix("code/").removesuffix(".py").replace("/", ".")


def _declared(part: ast.ClassDef) -> ScriptClass:
    attributes: dict[str, ast.expr] = {}
    tensors: set[str] = set()
    for line in part.body:
        target = line.targets[0] if isinstance(line, ast.Assign) else getattr(line, "target", None)
        if isinstance(line, ast.AnnAssign) and isinstance(target, ast.Name) and line.value is None:
            attributes[target.id] = line.annotation
        elif not isinstance(line, ast.Assign):
            continue
        elif isinstance(target, ast.Subscript) and is_name(target.value, "__annotations__"):
            attributes[text_of(target.slice)] = line.value  # whose name is no identifier
        elif isinstance(target, ast.Name) and target.id in ("__parameters__", "__buffers__"):
            tensors.update(map(text_of, getattr(line.value, "elts", ())))
    methods = {line.name for line in part.body if isinstance(line, ast.FunctionDef)}
    is_module = any(is_name(base, "Module") for base in part.bases)
    return ScriptClass(attributes, frozenset(tensors), frozenset(methods), is_module)


def is_name(node: ast.AST, name: str) -> bool:
    """Whether an expression is that name."""
    return isinstance(node, ast.Name) and node.id == name


def text_of(node: ast.AST) -> str:
    """The text of a string; empty where it is something else."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
