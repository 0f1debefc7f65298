"""The fused attention of torch.nn's transformer layers, which scripted ones hold next to the plain one.

They take it where no gradients are wanted. It has no second derivative, and it reads memory out of bounds where sizes
in the file do not fit each other, so that it is taken out: gradients count as wanted, always. Where the fused branch
is reached nevertheless (no parameter requires a gradient), the program raises an error.
"""

from __future__ import annotations

import ast
import dataclasses

from hvpspec.checkpoint.formats.torchscript.program import Program

_FUSED = {
    "_native_multi_head_attention": "Tuple[Tensor, Tensor]",
    "_transformer_encoder_layer_fwd": "Tensor",
    "_nested_tensor_from_mask": "Tensor",
    "to_padded_tensor": "Tensor",
}
_CONSTANTS = {
    "is_grad_enabled": True,
    "_nested_tensor_from_mask_left_aligned": False,  # whether a mask fits the fused branch
}
_MESSAGE = "the fused attention has no second derivative; let the parameters require gradients"


def without_fused(program: Program) -> Program:
    """The program with its plain attention only, where it has a branch for the fused one."""
    if not any(_name(node) in _FUSED for file in program.files.values() for node in ast.walk(file)):
        return program
    return dataclasses.replace(program, files={name: _Plain().visit(file) for name, file in program.files.items()})


def _name(node: ast.AST) -> str:
    """The operator that a node calls: torch.NAME(…)."""
    function = node.func if isinstance(node, ast.Call) else None
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == "torch":
        return function.attr
    return ""


class _Plain(ast.NodeTransformer):
    """Replaces the calls inside of branches. One that is always reached is left, and refused as any other operator."""

    def visit_If(self, node: ast.If) -> ast.If:
        node.body, node.orelse = self._branch(node.body), self._branch(node.orelse)
        return self.generic_visit(node)  # type: ignore[return-value]

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if _name(node) in _CONSTANTS:
            return ast.Constant(_CONSTANTS[_name(node)])
        return self.generic_visit(node)

    def _branch(self, lines: list[ast.stmt]) -> list[ast.stmt]:
        changed: list[ast.stmt] = []
        for line in lines:
            if isinstance(line, ast.Assign | ast.Return | ast.Expr) and any(_name(n) in _FUSED for n in ast.walk(line)):
                changed.append(ast.parse(f'ops.prim.RaiseException("{_MESSAGE}", "builtins.RuntimeError")').body[0])
                line = _Emptied().visit(line)
            changed.append(line)
        return changed


class _Emptied(ast.NodeTransformer):
    def visit_Call(self, node: ast.Call) -> ast.AST:
        if _name(node) in _FUSED:
            return ast.parse(f"uninitialized({_FUSED[_name(node)]})", mode="eval").body
        return self.generic_visit(node)
