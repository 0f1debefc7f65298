"""TorchScript archives of strangers: what is loaded is what was inspected, and none of it reaches beyond tensors."""

import io
import re
import warnings
import zipfile

import pytest
import torch
import torch.nn.functional as F
from checkpoint.archive_mutations import Member, archived, directory, end, members_of, written
from checkpoint.files_for_tests import X
from torch import nn

import hvpspec
from hvpspec.checkpoint.formats.torchscript.operators import OPERATORS
from hvpspec.errors import CheckpointError, CheckpointWarning

warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*torch.jit")

SENTINEL = "what was there before"


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.arange(4.0))

    def forward(self, x):
        return x * self.weight


PLAIN = f"__torch__.{Plain.__module__}.Plain".encode()


def script(module):
    out = io.BytesIO()
    torch.jit.save(torch.jit.script(module), out)
    return out.getvalue()


def changed(content, old, new, name=r"\.py$"):
    """The members of an archive, with a text replaced in those that `name` matches."""
    members = members_of(content)
    assert any(old in member.content for member in members if re.search(name, member.name.decode()))
    return [
        Member(m.name, m.content.replace(old, new) if re.search(name, m.name.decode()) else m.content) for m in members
    ]


FROM_FILE = b'torch.from_file("sentinel", True, 4, dtype=6, layout=0, device=torch.device("cpu"))'
EVIL = b"return torch.mul(torch.fill_(" + FROM_FILE + b", 1.5), weight)"
RETURN = b"return torch.mul(x, weight)"


@pytest.fixture
def sentinel(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sentinel").write_text(SENTINEL)
    yield tmp_path / "sentinel"
    assert (tmp_path / "sentinel").read_text() == SENTINEL


def in_another_case(evil):
    """torch finds CODE/__torch__.PY as code/__torch__.py; to a reader that knows the difference it is no program."""
    renamed = (Member(re.sub(rb"code(/.*)\.py$", rb"CODE\1.PY", m.name), m.content) for m in evil)
    return written(list(renamed))


def with_two_directories(plain, evil):
    """Two central directories over the same bytes: torch's reader takes the one at the place that the end names, and
    Python's the one directly before the end, and counts all places from where the archive would then begin."""
    body, offsets = archived([*members_of(plain), *evil])
    half = len(evil)
    length = len(directory(evil, offsets[half:]))
    body = b"PK\3\4".ljust(length, b"\0") + body
    for_python = directory(members_of(plain), offsets[:half])
    for_torch = directory(evil, [offset + length for offset in offsets[half:]])
    return body + for_torch + for_python + end(half, length, len(body))


@pytest.mark.parametrize("make", ["case", "directory"])
def test_an_archive_that_another_reader_reads_otherwise(sentinel, make):
    plain = script(Plain())
    evil = changed(plain, RETURN, EVIL)
    content = in_another_case(evil) if make == "case" else with_two_directories(plain, evil)
    (sentinel.parent / "m.pt").write_bytes(content)
    try:
        model = hvpspec.load_checkpoint("m.pt")
    except CheckpointError:
        return
    assert torch.equal(model(torch.ones(4)), torch.arange(4.0))
    assert "from_file" not in str(model.graph)


def test_torch_itself_finds_the_other_program_in_them():
    plain = script(Plain())
    evil = changed(plain, RETURN, EVIL)
    for content in (in_another_case(evil), with_two_directories(plain, evil)):
        assert "from_file" in str(torch.jit.load(io.BytesIO(content)).graph)


class SetState(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    @torch.jit.export
    def __getstate__(self):
        return self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]):
        self.weight = state[0]
        self.training = state[1]

    def forward(self, x):
        return x * self.weight


def test_nothing_is_run_on_loading(tmp_path):
    (tmp_path / "m.pt").write_bytes(script(SetState()))
    with pytest.raises(
        CheckpointError, match="has a __setstate__, which would be run when it is loaded, so it was not"
    ):
        hvpspec.load_checkpoint(tmp_path / "m.pt")
    with pytest.warns(CheckpointWarning, match="it is run, as asked"):
        assert torch.equal(
            hvpspec.load_checkpoint(tmp_path / "m.pt", trust_pickle=True)(X[:1, :1]), X[:1, :1].expand(1, 4)
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"torch.mul(x, " + FROM_FILE + b")", "uses 'from_file', which can reach files"),
        (b'getattr(torch, "from_file")(x)', "uses 'from_file', which can reach files"),
        (b"(torch).from_file(x)", "uses 'from_file', which can reach files"),
        (b"ops.aten.from_file(x)", "uses 'from_file', which can reach files"),
        (b"x.from_file(x)", "uses 'from_file', which can reach files"),
        (b"torch.mul(x, weight).from_file(x)", "uses 'from_file', which can reach files"),
        (b"self.save(x)", "uses 'save', which can reach files"),
        (b"(x).save(x)", "uses 'save', which can reach files"),
        ("ops.aten.ｆrom_file(x)".encode(), "uses 'from_file', which can reach files"),
        (b"torch._sparse_coo_tensor_unsafe(x, x, [1], dtype=None)", "uses '_sparse_coo_tensor_unsafe'"),
        (b'torch.segment_reduce(x, "sum", unsafe=True)', "uses 'segment_reduce', which is not among the operators"),
        (b"torch.as_strided(x, [9], [1])", "uses 'as_strided'"),
        (b"torch.resize_(x, [9])", "uses 'resize_'"),
        (b"torch.empty([9])", "uses 'empty'"),
        (b"torch.manual_seed(0)", "uses 'manual_seed'"),
        (b"ops.prim.unchecked_unwrap_optional(x)", "uses 'unchecked_unwrap_optional'"),
        (b"ops.quantized.add(x, x)", r"uses operators from outside torch \(quantized\)"),
        (b"ops.mylib.run(x)", r"uses operators from outside torch \(mylib\)"),
        (b"torch.ops.mylib.run(x)", r"uses 'torch\.ops\.mylib\.run'"),
        (b"print(x)", "uses 'print'"),
        (b"open(x)", "uses 'open'"),
        (b"__torch__.torch.classes.quantized.Conv2dPackedParamsBase(x)", r"uses classes written in C\+\+"),
        (b"__torch__.somewhere.run(x)", r"uses '__torch__\.somewhere\.run', which it does not define"),
        (b"unchecked_cast(Tuple[Tensor, Tensor], x)", "has a value whose type cannot be known beforehand"),
        (b"unchecked_cast(" + PLAIN + b", x)", "has a value whose type cannot be known beforehand"),
        (b"annotate(RRef[Tensor], x)", "has values of an unknown type"),
        (b"(lambda: x)()", "cannot be inspected"),
        (b"x if x else x", "cannot be inspected"),
        (b"torch.neg(" * 160 + b"x" + b")" * 160, "is nested too deeply"),
    ],
)  # fmt: skip
def test_programs_that_are_not_known_to_be_harmless(sentinel, text, message):
    (sentinel.parent / "m.pt").write_bytes(written(changed(script(Plain()), RETURN, b"return " + text)))
    with pytest.raises(CheckpointError, match=message) as caught:
        hvpspec.load_checkpoint("m.pt")
    assert "--trust-pickle" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        (b"weight : Tensor", b"weight : int", r"\.py$"),  # another type than the value has
        (b"weight : Tensor", b"weight : Tuple[Tensor, Tensor]", r"\.py$"),
        (b"weight : Tensor", b"weight : " + PLAIN, r"\.py$"),
        (b"weight : Tensor", b"weight : Tensor\n  other : Tensor", r"\.py$"),  # that has no value
        (b"training : bool", b"training : int", r"\.py$"),
        (b"\nPlain", b"\nOther", r"data\.pkl$"),
        (b"_rebuild_tensor_v2", b"_rebuild_qtensor", r"data\.pkl$"),
        (b"FloatStorage", b"ByteStorage", r"data\.pkl$"),  # a quarter of the bytes that there are
        (b"K\x00(K\x04", b"K\x00(K\x05", r"data\.pkl$"),  # a shape of five, outside the memory
        (b"3\n", b"three\n", r"version$"),
        (b"def forward(", b"def __setstate__(", r"\.py$"),
        (b"class Plain(Module)", b"class Plain(Interface)", r"\.py$"),
        (b"class Plain(Module)", b"class Plain(Module):\n  pass\nclass Plain(Module)", r"\.py$"),
    ],
)
def test_objects_that_are_not_what_the_program_declares(tmp_path, old, new, name):
    (tmp_path / "m.pt").write_bytes(written(changed(script(Plain()), old, new, name)))
    with pytest.raises(CheckpointError) as caught:
        hvpspec.load_checkpoint(tmp_path / "m.pt")
    assert "\n" not in str(caught.value)


def test_a_method_of_another_class_is_not_ones_own(sentinel):
    """Where a class has no method of that name, torch takes its operator, aten::save for one."""
    other = PLAIN.replace(b"Plain", b"Other")
    more = b"class Other(Module):\n  def save(self: " + other + b",\n    x: str) -> NoneType:\n    return None\n"
    members = changed(script(Plain()), RETURN, b'_0 = self.save("sentinel")\n    ' + RETURN)
    members = [Member(m.name, m.content + (more if m.name.endswith(b".py") else b"")) for m in members]
    (sentinel.parent / "m.pt").write_bytes(written(members))
    with pytest.raises(CheckpointError, match="uses 'save', which can reach files"):
        hvpspec.load_checkpoint("m.pt")


def test_comments_and_strings_are_not_seen_in_two_ways(sentinel):
    """torch reads a text that was written from what was inspected: Python ends a line at a carriage return, torch does
    not, and a string goes on after a backslash."""
    hidden = b"# \r    " + EVIL.replace(b"\n", b"\r")
    (sentinel.parent / "m.pt").write_bytes(written(changed(script(Plain()), RETURN, hidden)))
    with pytest.raises(CheckpointError, match="uses 'from_file'"):
        hvpspec.load_checkpoint("m.pt")
    comment = b"# " + FROM_FILE + b"\n    " + RETURN
    (sentinel.parent / "m.pt").write_bytes(written(changed(script(Plain()), RETURN, comment)))
    assert "from_file" not in str(hvpspec.load_checkpoint("m.pt").graph)


def test_the_rest_of_an_archive_is_left_out(tmp_path):
    """Debugging records, which torch unpickles, and files that their users add."""
    members = members_of(script(Plain()))
    members = [Member(m.name, b"\x80\x02" if b"debug_pkl" in m.name else m.content) for m in members]
    (tmp_path / "m.pt").write_bytes(written([*members, Member(b"archive/extra/notes.txt", b"?")]))
    assert torch.equal(hvpspec.load_checkpoint(tmp_path / "m.pt")(torch.ones(4)), torch.arange(4.0))


def test_operators_are_of_this_torch_and_not_of_the_dangerous_kinds():
    names = {schema.name.partition("::")[2] for schema in torch._C._jit_get_all_schemas()}
    assert not OPERATORS - names
    dangerous = re.compile(
        r"from_file|^save$|sparse|quantiz|empty|^resize|^set_|as_strided|backward|cudnn|mkldnn|fbgemm|^_unsafe|"
        r"segment_reduce|nested|manual_seed|^_masked|data_ptr|storage|^_fused|^_foreach|native_|^_sdp|^_flash|thnn"
    )
    assert not [name for name in OPERATORS if dangerous.search(name)]
    for schema in torch._C._jit_get_all_schemas():
        if schema.name.startswith("aten::") and schema.name[6:] in OPERATORS:
            given = {argument.name: str(argument.type) for argument in schema.arguments}
            assert not {"filename", "unsafe"} & set(given), schema
            assert not any(kind in ("Storage", "Future", "Stream") for kind in given.values()), schema


def test_shared_tensors_and_lists_stay_shared(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 3)
            self.b = self.a
            self.sizes = [1, 2**40, -3]
            self.named = {"x": 0.5}
            self.both = (1, "é")

        def forward(self, x):
            return self.b(self.a(x)) * self.named["x"] + self.sizes[0]

    saved = Tied()
    (tmp_path / "m.pt").write_bytes(script(saved))
    loaded = hvpspec.load_checkpoint(tmp_path / "m.pt")
    assert len(list(loaded.parameters())) == 2
    assert loaded.a.weight.data_ptr() == loaded.b.weight.data_ptr()
    assert (loaded.sizes, loaded.named, loaded.both) == ([1, 2**40, -3], {"x": 0.5}, (1, "é"))
    torch.testing.assert_close(loaded(X), saved(X))
    assert F.linear(X, loaded.a.weight).shape == (12, 3)


def test_texts_are_the_same_in_the_program_that_is_written_anew(tmp_path):
    """torch writes and reads the letters of a string byte by byte."""

    class Speaking(nn.Module):
        def forward(self, x: int) -> str:
            return "é\x85\n\t'\"\\ 😀 {}" + str(x)

    model = Speaking()
    (tmp_path / "m.pt").write_bytes(script(model))
    assert hvpspec.load_checkpoint(tmp_path / "m.pt")(3) == model(3)


def test_a_bomb_of_source_text_is_not_parsed(tmp_path):
    members = members_of(script(Plain()))
    with zipfile.ZipFile(tmp_path / "m.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for member in members:
            archive.writestr(member.name.decode(), member.content)
        archive.writestr("archive/code/more.py", "x = 1\n" * (2 << 20))
    with pytest.raises(CheckpointError, match="the text of its program is too long"):
        hvpspec.load_checkpoint(tmp_path / "m.pt")
