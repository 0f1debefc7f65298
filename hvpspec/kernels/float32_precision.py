"""Float32 with all of its digits: operations on float32 that torch may compute in TF32 or bfloat16 are exact meanwhile.

torch has a setting for each kind of operation of each backend. One that is "none" follows its backend's, and that the
generic one; convolutions and recurrent layers on CUDA are TF32 where nobody has said anything. Besides, there are two
older settings, which torch refuses to read where the newer ones contradict them. So these are set as well here, or are
read as what they must be. A setting that follows another one is left to do so, as it could not be told to do so again.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

Setting = tuple[str, str]  # backend and kind of operation, as torch names them

_SETTINGS: tuple[Setting, ...] = (  # each after the one that it may follow
    ("generic", "all"), ("cuda", "all"), ("mkldnn", "all"), ("cuda", "matmul"), ("cuda", "conv"), ("cuda", "rnn"),
    ("mkldnn", "matmul"), ("mkldnn", "conv"), ("mkldnn", "rnn"),
)  # fmt: skip
_MATMULS: tuple[Setting, ...] = (("cuda", "matmul"), ("mkldnn", "matmul"))  # which the older setting sets as well
_GET, _PUT = torch._C._get_fp32_precision_getter, torch._C._set_fp32_precision_setter
_READ_OLD_CUDNN = torch._C._get_cudnn_allow_tf32
_SET_OLD_MATMUL = torch._C._set_float32_matmul_precision
_KINDS = ("matmul", "conv", "rnn")
_FEWER_DIGITS = ("tf32", "bf16")
_SETTERS = (
    "_set_fp32_precision_setter", "_set_cublas_allow_tf32", "_set_cudnn_allow_tf32", "_set_float32_matmul_precision",
)  # fmt: skip
_OF_ONEDNN = "ONEDNN_DEFAULT_FPMATH_MODE"  # an environment variable, which overrules torch's settings
_MODES_OF_ONEDNN = ("bf16", "f16", "tf32", "any")


class _Context:
    """One that is open. Where an alarm keeps it from saying that it ends, it is forgotten all the same."""


@dataclass
class _State:
    """What the process has once: which contexts are open, and what the settings were before the first one."""

    open: weakref.WeakSet[_Context] = field(default_factory=weakref.WeakSet)
    all_exact: bool = False  # rather than those of the CPU, which were so already
    old_cudnn: bool | None = None  # what the older setting of cuDNN is, where it can be read
    undo: list[Callable[[], object]] = field(default_factory=list)  # in this order, the last one first
    before: dict[Setting, str] = field(default_factory=dict)  # what they came to
    changed: dict[Setting, str] = field(default_factory=dict)  # those that followed no other one


_state, _lock = _State(), threading.RLock()  # the end of a context that was forgotten may come at any moment


@contextlib.contextmanager
def exact_float32(device: torch.device, held: Callable[[], bool]) -> Iterator[None]:
    """Operations on float32 compute in float32, in all threads: the settings are the process's.

    Several threads may be in it at once; the settings come back when the last one leaves. held: whether the thread that
    asks computes a product, so that code which switches TF32 on, such as a model's forward with
    `torch.backends.cudnn.flags`, does nothing of the kind.
    """
    context = _Context()
    try:
        with _lock:
            if first := not _state.open:
                _restore()  # where an alarm has kept the last one from it
            _state.open.add(context)
            if first:
                _hold(held)
            # Looked at, as a context that an alarm has kept from ending may be open until Python collects garbage.
            if not (_is_exact_everywhere() or (device.type == "cpu" and _is_exact("mkldnn"))):
                _make_exact()
        yield
    finally:
        with _lock:
            _state.open.discard(context)
            if not _state.open:
                _restore()


def is_exact_on_cpu() -> bool:
    """Whether operations on the CPU are exact and stay so: nothing is about to be changed back."""
    return not _state.open and not _state.undo and _is_exact("mkldnn")


def switched_on(device: torch.device) -> dict[str, list[str]]:
    """The kinds of operations ("matmul", "conv", "rnn") by the precision that somebody has set for them.

    "tf32", "bf16", "f16" or "any". Without what torch does by default: on CUDA, convolutions and recurrent layers in
    TF32.
    """
    backend = "mkldnn" if device.type == "cpu" else device.type
    found: dict[str, list[str]] = {}
    with exact_float32(torch.device("cuda"), lambda: False):
        before = _state.before
        for kind in _KINDS if (backend, "all") in before else ():
            precision = before[backend, kind]
            if precision in _FEWER_DIGITS and (
                (backend, kind) in _state.changed or before[backend, "all"] == precision
            ):
                found.setdefault(precision, []).append(kind)
    if backend == "mkldnn" and (mode := _mode_of_onednn()) is not None:
        found.setdefault(mode, []).append("conv")
    return found


def _is_exact(backend: str) -> bool:
    return not any(_GET(backend, kind) in _FEWER_DIGITS for kind in _KINDS) and _mode_of_onednn() is None


def _is_exact_everywhere() -> bool:
    return _state.all_exact and all(_GET(*one) == "ieee" for one in _SETTINGS)


def _mode_of_onednn() -> str | None:
    mode = os.environ.get(_OF_ONEDNN, "").lower()
    return mode if mode in _MODES_OF_ONEDNN else None


def _make_exact() -> None:
    """Changes the settings, and leaves it to `_state.undo` to change them back."""
    done = len(_state.undo)
    try:
        _state.before, _state.changed = {one: _GET(*one) for one in _SETTINGS}, {}
        _state.old_cudnn = _old_cudnn()
        for one in _SETTINGS:
            if (value := _GET(*one)) != "ieee":
                _state.changed[one] = value
                _put(one, "ieee", value)
        _set_old_matmul()
        if _mode_of_onednn() is not None and torch._C._get_mkldnn_enabled():
            _do(partial(torch._C._set_mkldnn_enabled, False), partial(torch._C._set_mkldnn_enabled, True))
        _state.all_exact = True
    except BaseException:
        _restore(done)
        raise


def _restore(done: int = 0) -> None:
    """Undoes all but so much. What is interrupted here, the next one does."""
    _state.all_exact, _state.old_cudnn = False, None
    while len(_state.undo) > done:
        last = _state.undo[-1]
        last()
        if _state.undo[-1:] == [last]:
            _state.undo.pop()


def _do(work: Callable[[], object], undo: Callable[[], object]) -> None:
    _state.undo.append(undo)
    work()


def _put(one: Setting, value: str, before: str) -> None:
    _do(partial(_PUT, *one, value), partial(_PUT, *one, before))


def _set_old_matmul() -> None:
    """The older setting of matrix products, which sets two newer ones to the same."""
    if (old := torch.get_float32_matmul_precision()) == "highest":
        return
    for backend, kind in _MATMULS:  # what they are is put back after it
        itself = "none" if _follows((backend, "all"), ("generic", "all"), "ieee") else "ieee"
        follows = _follows((backend, kind), (backend, "all"), itself)
        _put((backend, kind), "ieee", "none" if follows else "ieee")
    _do(partial(_SET_OLD_MATMUL, "highest"), partial(_SET_OLD_MATMUL, old))


def _follows(one: Setting, other: Setting, before: str) -> bool:
    """Whether a setting changes with another one. before: what the other one is set to itself."""
    _put(other, "tf32", before)
    follows = _GET(*one) == "tf32"
    _PUT(*other, before)
    return follows


def _old_cudnn() -> bool | None:
    """The older setting of cuDNN; None where it contradicts newer ones."""
    try:
        return _READ_OLD_CUDNN()
    except RuntimeError:
        return None


def _hold(held: Callable[[], bool]) -> None:
    """What sets precisions does nothing where a product is computed.

    Setting cuDNN's older one would change newer ones for good. So it stays, and is read as False there; other threads
    read what it was.
    """

    def read() -> bool:
        if held():
            return False
        return _READ_OLD_CUDNN() if _state.old_cudnn is None else _state.old_cudnn

    core = torch._C
    of_cudnn = vars(type(torch.backends.cudnn))["allow_tf32"]
    for name in _SETTERS:
        _replace(core, name, _unless(held, getattr(core, name)))
    _replace(core, "_get_cudnn_allow_tf32", read)
    _replace(of_cudnn, "setter", core._set_cudnn_allow_tf32)  # a property, which has the functions themselves
    _replace(of_cudnn, "getter", read)


def _replace(of: Any, name: str, function: Callable[..., Any]) -> None:
    _do(partial(setattr, of, name, function), partial(setattr, of, name, getattr(of, name)))


def _unless(held: Callable[[], bool], set_it: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments: None if held() else set_it(*arguments)
