"""Which classes a user may allow in a pickle (`--allow-class`), and which of them a message may advise to allow.

A file chooses the arguments that a class is called with: `subprocess.Popen` runs a program, `eval` a text. A file never
gets a message to advise such a thing: it advises classes of the user's own, and those that hold plain data.
"""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
from pathlib import Path

from hvpspec.checkpoint.formats.pickles.stand_ins import STAND_INS

_MAIN = "__main__"  # the module of the classes in `python train.py`

_PLAIN = frozenset({
    "collections.ChainMap", "collections.Counter", "collections.OrderedDict", "collections.UserDict",
    "collections.UserList", "collections.UserString", "datetime.date", "datetime.datetime", "datetime.time",
    "datetime.timedelta", "datetime.timezone", "decimal.Decimal", "fractions.Fraction", "random.Random", "uuid.UUID",
    "torch.torch_version.TorchVersion",
    *STAND_INS,
})  # fmt: skip

# Packages whose classes are networks, optimizers, or settings.
_PLAIN_PACKAGES = (
    "torch.nn.", "torch.optim.", "torchvision.models.", "torchvision.ops.", "timm.models.", "timm.layers.",
    "transformers.models.", "transformers.configuration_utils.", "transformers.generation.configuration_utils.",
    "transformers.training_args.", "transformers.trainer_utils.", "omegaconf.", "pytorch_lightning.utilities.parsing.",
    "lightning.pytorch.utilities.parsing.", "lightning_fabric.utilities.data.",
)  # fmt: skip

# Calling a class of these makes memory of unknown content, as torch.FloatTensor(4, 3) does.
_MEMORY = ("torch", "torch.cuda", "torch.sparse", "torch.storage", "torch._C")


def never_allowed(name: str) -> str | None:
    """Why a class cannot be allowed at all, or None."""
    module = name.rpartition(".")[0]
    if is_plain(name) or module == _MAIN:
        return None
    if _is_pythons(module.partition(".")[0]):
        return "it is part of Python and not plain data, so that a file could run code with it"
    return "it makes memory of unknown content" if module in _MEMORY else None


def is_plain(name: str) -> bool:
    """Whether a class of a well-known library holds plain data, or is a network or an optimizer."""
    return name in _PLAIN or name.startswith(_PLAIN_PACKAGES)


def is_the_users(name: str) -> bool:
    """Whether a class is of the user's own code, and not of an installed package. Nothing is imported for that."""
    return not _lies_in(name.partition(".")[0], "purelib", "platlib")


def _is_pythons(top: str) -> bool:
    """Whether a module comes with Python. A user's own may have the name of one: test, code, profile."""
    if top not in (*sys.stdlib_module_names, "builtins"):
        return False
    return top in sys.builtin_module_names or _lies_in(top, "stdlib", "platstdlib")


def _lies_in(top: str, *kinds: str) -> bool:
    """Whether a module is in one of Python's folders; False for one that is found nowhere, or was made by hand."""
    try:
        spec = getattr(sys.modules.get(top), "__spec__", None) or importlib.util.find_spec(top)
        origins = [spec.origin, *(spec.submodule_search_locations or ())] if spec is not None else []
        found = [Path(origin).resolve() for origin in origins if origin and origin != "frozen"]
    except (ImportError, ValueError, OSError, AttributeError):
        return False
    if not found and spec is not None:
        return "stdlib" in kinds  # frozen into the interpreter
    folders = [Path(sysconfig.get_path(kind)).resolve() for kind in kinds]
    return any(path.is_relative_to(folder) for path in found for folder in folders)


def may_be_advised(name: str) -> bool:
    """Whether a message may advise to allow it, as far as can be known without importing what the file names."""
    module, _, attribute = name.rpartition(".")
    if module == _MAIN and attribute.isidentifier():
        return True
    if never_allowed(name) or not name.isprintable() or not (is_plain(name) or is_the_users(name)):
        return False
    if module in sys.modules:
        return isinstance(getattr(sys.modules[module], "__dict__", {}).get(attribute), type)
    return attribute.lstrip("_")[:1].isupper()
