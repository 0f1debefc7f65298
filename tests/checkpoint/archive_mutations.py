"""Loads archives whose directories and names are mutated, so that two readers could see different files in them.

    python tests/checkpoint/archive_mutations.py COUNT [SEED]

Runs in the current folder, which must hold nothing but `sentinel`. Of a TorchScript archive, a file of torch.save, a
distributed checkpoint and a safetensors file, COUNT mutants each of the first two and a quarter of that of the others
are loaded. Most have members with other content, under names that are almost those of the real ones: a program that
overwrites `sentinel`, and other weights. A mutant must be refused with CheckpointError, or load what Python's zipfile
finds in it, and that without the program. Nothing on disk may change. Prints how many were refused and loaded.
"""

import contextlib
import io
import json
import random
import re
import shutil
import struct
import sys
import warnings
import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import nn

import hvpspec
from hvpspec.checkpoint.formats.torchscript import first_run
from hvpspec.errors import CheckpointError

SENTINEL = "what was there before"
EVIL = "from_file"


def net():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


@dataclass(frozen=True)
class Member:
    """An entry of an archive, with what its local header and the central directory say of it."""

    name: bytes  # in the central directory
    content: bytes
    local: bytes | None = None  # the name in the local header, where it is another one
    shift: int = 0  # added to the offset in the central directory
    size: int | None = None  # in the central directory, where it is another one
    listed: bool = True  # whether the central directory has it


def members_of(content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [Member(name.encode(), archive.read(name)) for name in archive.namelist()]


def directory(members, offsets):
    """A central directory."""
    out = b""
    for member, offset in zip(members, offsets, strict=True):
        if member.listed:
            size = len(member.content) if member.size is None else member.size
            out += struct.pack(
                "<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 0, zlib.crc32(member.content), size, size,
                len(member.name), 0, 0, 0, 0, 0, (offset + member.shift) % 2**32,
            ) + member.name  # fmt: skip
    return out


def end(count, size, offset, comment=b""):
    return struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, size, offset, len(comment)) + comment


def zip64_end(count, size, offset, at):
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, offset)
    return record + struct.pack("<4sLQL", b"PK\6\7", 0, at, 1)


def archived(members):
    """(local headers and contents, their offsets)."""
    out, offsets = b"", []
    for member in members:
        offsets.append(len(out))
        name = member.name if member.local is None else member.local
        size = len(member.content)
        out += struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 0, zlib.crc32(member.content), size, size, len(name), 0)
        out += name + member.content
    return out, offsets


def written(members):
    body, offsets = archived(members)
    listed = directory(members, offsets)
    return body + listed + end(sum(member.listed for member in members), len(listed), len(body))


# --- mutations --------------------------------------------------------------------------------------------------------


def almost(name, rng):
    """A name that another reader may take for the same."""
    top, _, rest = name.partition(b"/")
    return rng.choice((
        name, name.upper(), top + b"/" + rest.upper(), top + b"/" + rest.title(), top.upper() + b"/" + rest,
        top + b"/./" + rest, top + b"//" + rest, top + b"/x/../" + rest, b"/" + name, name + b"\0", name + b"\0.py",
        name.replace(b"/", b"\\"), b"other/" + rest, rest, name + b"/", name.replace(b".", b"\xef\xbc\x8e"),
        name[:-1], b"",
    ))  # fmt: skip


def evil(members, rng):
    """A copy of a member, with content that must not be loaded unseen."""
    member = rng.choice([m for m in members if re.search(rb"\.py$|/data/\d+$|data\.pkl$", m.name)] or members)
    content = member.content
    if b"return" in content:
        lines = content.decode().split("\n")
        at = next(i for i, line in enumerate(lines) if re.match(r"\s*return", line))
        indent = re.match(r"\s*", lines[at])[0]
        call = f'{indent}evil = torch.{EVIL}("sentinel", True, 4, dtype=6, layout=0, device=torch.device("cpu"))'
        more = [call, f"{indent}if torch.eq(torch.dim(torch.fill_(evil, 1.5)), 7):", f"{indent}  evil2 = 1",
                f"{indent}  ops.prim.RaiseException(\"\", \"\")", f"{indent}else:", f"{indent}  pass"]  # fmt: skip
        content = "\n".join([*lines[:at], *more, *lines[at:]]).encode()
    elif re.search(rb"/data/\d+$", member.name):
        content = bytes(byte ^ 0x15 for byte in content)
    return replace(member, content=content)


def mutant(members, rng):
    """The bytes of an archive with one to three mutations, most of which add content that must not be loaded unseen."""
    members = list(members)
    for _ in range(rng.choice((0, 1, 1, 2))):
        kind = rng.choice(("add", "add", "case", "order", "offset", "size", "local", "hide", "drop", "replace"))
        at = rng.randrange(len(members))
        member = members[at]
        if kind == "add":
            other = evil(members, rng)
            members.insert(rng.choice((0, at, len(members))), replace(other, name=almost(other.name, rng)))
        elif kind == "replace":
            other = evil(members, rng)
            members[next(i for i, m in enumerate(members) if m.name == other.name)] = other
        elif kind == "case":
            members[at] = replace(member, name=almost(member.name, rng))
        elif kind == "order":
            rng.shuffle(members)
        elif kind == "offset":
            members[at] = replace(member, shift=rng.choice((1, -1, 30, 64, -64, 2**31, rng.randrange(4000))))
        elif kind == "size":
            members[at] = replace(member, size=rng.choice((0, 1, len(member.content) * 2, 2**32 - 1)))
        elif kind == "local":
            members[at] = replace(member, local=almost(member.name, rng))
        elif kind == "hide":
            members[at] = replace(member, listed=False)
        elif len(members) > 1:
            del members[at]
    return two_directories(members, rng) if rng.random() < 0.5 else around(written(members), rng)


def two_directories(members, rng):
    """An archive with a second central directory, of which one reader may find the first and another the second."""
    other = evil(members, rng)
    at = next(i for i, member in enumerate(members) if member.name == other.name)
    body, offsets = archived([*members, other])
    plain = [*members, replace(other, listed=False)]
    turned = [replace(member, listed=i != at) for i, member in enumerate([*members, other])]
    first, second = directory(plain, offsets), directory(turned, offsets)
    if rng.random() < 0.5:
        first, second = second, first
    count = len(members)
    kind = rng.randrange(5)
    if kind == 0:  # two whole ends
        done = body + first + end(count, len(first), len(body))
        return done + second + end(count, len(second), len(done))
    if kind == 1:  # the second end in the first's comment
        more = second + end(count, len(second), len(body) + len(first) + 22)
        return body + first + end(count, len(first), len(body), more)
    if kind == 2:  # the zip64 record says one, the plain end the other
        both = body + first + second
        where = zip64_end(count, len(second), len(body) + len(first), len(both))
        return both + where + end(count, len(first), len(body))
    if kind == 3:  # what comes directly before the end is not where the end says
        return body + first + second + end(count, len(first), len(body))
    # Python counts all places from where the archive would begin if what comes before the end were the directory.
    body = b"PK\3\4".ljust(len(second), b"\0") + body
    second = directory(turned, [offset + len(second) for offset in offsets])
    return body + second + first + end(count, len(second), len(body))


def around(content, rng):
    """Cut, or with bytes before or after it."""
    kind = rng.randrange(8)
    if kind == 0:
        return content[: rng.randrange(len(content))]
    if kind == 1:
        return rng.randbytes(rng.randrange(1, 200)) + content
    if kind == 2:
        return b"PK\3\4" + rng.randbytes(rng.randrange(1, 200)) + content
    if kind == 3:
        return content + rng.randbytes(rng.randrange(1, 200))
    if kind == 4:
        comment = rng.randbytes(rng.randrange(1, 80))
        return content[:-2] + struct.pack("<H", len(comment)) + comment
    return content


def mutated_safetensors(content, rng):
    """Another name or place in the header, or the header twice."""
    length = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + length], content[8 + length :]
    kind = rng.randrange(5)
    if kind == 0:
        header = header.replace(b'"0.weight"', rng.choice((b'"2.weight"', b'"0.WEIGHT"', b'"0.weight\\u0000"', b'""')))
    elif kind == 1:
        numbers = list(re.finditer(rb"\d+", header))
        found = rng.choice(numbers)
        header = header[: found.start()] + str(rng.choice((0, 7, 2**40, 2**64))).encode() + header[found.end() :]
    elif kind == 2:
        header = header[:-1] + b"," + header[1:]  # every name twice
    elif kind == 3:
        return content[: rng.randrange(len(content))]
    else:
        data = data + content
    return len(header).to_bytes(8, "little") + header + data


# --- what is loaded ---------------------------------------------------------------------------------------------------


def seen_by_zipfile(path):
    """{name without the first folder: content}, as Python sees the archive; without what it cannot read."""
    seen = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            with contextlib.suppress(zipfile.BadZipFile, ValueError, EOFError):
                seen[name.partition("/")[2]] = archive.read(name)
    return seen


def check_script(path):
    """The tensors and the program are those that zipfile finds."""
    model = hvpspec.load_checkpoint(path)
    seen = seen_by_zipfile(path)
    sources = b"".join(content for name, content in seen.items() if name.endswith(".py"))
    assert EVIL.encode() not in sources, "a program that reaches files was loaded"
    assert EVIL not in "".join(str(module.graph) for module in model.modules() if hasattr(module, "graph"))
    check_tensors(model.state_dict(), seen)
    model(torch.randn(2, 3))


def each_program_once(fails):
    """A process of its own takes seconds to start: programs that differ in weights alone share its first run."""
    known = {}

    def known_or_tried(given):
        sources = tuple(sorted((name, code) for name, code in seen_by_zipfile(given[1]).items() if ".py" in name))
        if sources not in known:
            known[sources] = fails(given)
        return known[sources]

    return known_or_tried


def check_saved(path):
    model = net()
    hvpspec.load_checkpoint(path, model)
    check_tensors(model.state_dict(), seen_by_zipfile(path))


def check_tensors(state, seen):
    held = {content for name, content in seen.items() if name.startswith("data/")}
    for name, tensor in state.items():
        assert tensor.contiguous().numpy().tobytes() in held, f"{name} has values that are not in the file"


def snapshot():
    """Everything in the folder, but for what is being loaded."""
    return {
        path.as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(Path().rglob("*"))
        if path.parts[0] not in ("mutant", "seeds")
    }


def seeds():
    """A checkpoint of each kind, and how it is mutated and loaded."""
    torch.manual_seed(0)
    state = net().state_dict()
    script, saved = io.BytesIO(), io.BytesIO()
    torch.jit.save(torch.jit.script(net()), script)
    torch.save(state, saved)
    dcp.save(state, checkpoint_id="seeds/dcp")
    import safetensors.torch

    return {
        "script": members_of(script.getvalue()), "saved": members_of(saved.getvalue()),
        "dcp": {file.name: file.read_bytes() for file in Path("seeds/dcp").iterdir()},
        "safetensors": safetensors.torch.save(state),
    }  # fmt: skip


def load(kind, seed, rng):
    """Writes a mutant and loads it."""
    path = Path("mutant")
    if kind in ("script", "saved"):
        path.write_bytes(mutant(seed, rng))
        (check_script if kind == "script" else check_saved)(path)
    elif kind == "safetensors":
        path.write_bytes(mutated_safetensors(seed, rng))
        hvpspec.load_checkpoint(path, net())
    else:
        path.mkdir()
        for name, content in seed.items():
            if name.endswith(".distcp"):  # one of the archives in it, of the same length, or of another one at the end
                starts = [found.start() for found in re.finditer(b"PK\3\4.{26}archive/data.pkl", content, re.DOTALL)]
                at = rng.randrange(len(starts))
                stop = [*starts, len(content)][at + 1]
                changed = mutant(members_of(content[starts[at] : stop]), rng)
                content = content[: starts[at]] + changed.ljust(stop - starts[at], b"\0") + content[stop:]
            (path / name).write_bytes(content)
        hvpspec.load_checkpoint(path, net())


def main(count, seed):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    first_run._fails = each_program_once(first_run._fails)
    Path("sentinel").write_text(SENTINEL)
    sources, before, report = seeds(), snapshot(), {}
    for kind, source in sources.items():
        outcomes = {"refused": 0, "loaded": 0}
        for case in range(count if kind in ("script", "saved") else count // 4):
            name = f"{kind} seed {seed} case {case}"
            Path("../current").write_text(name)
            try:
                load(kind, source, random.Random(name))
                outcomes["loaded"] += 1
            except CheckpointError:
                outcomes["refused"] += 1
            except BaseException as error:
                raise RuntimeError(f"{name}: {type(error).__name__}: {error}") from error
            finally:
                shutil.rmtree("mutant") if Path("mutant").is_dir() else Path("mutant").unlink(missing_ok=True)
            assert snapshot() == before, f"{name}: something on disk has changed"
        report[kind] = outcomes
    print(json.dumps(report))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
