"""Each rank has a log of its own: a run goes on to the same figures, on as many ranks or on another number of them."""

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import hvpspec
from hvpspec.errors import InputError
from hvpspec.krylov.log.journal import FORMAT, Journal
from hvpspec.krylov.log.log_file import LogFile
from hvpspec.krylov.log.other_ranks import OtherRanks, left_by_others
from hvpspec.krylov.log.records import ANSWERS, as_bytes, products_in, read
from tests.distributed.programs import classifier, of_pass
from tests.distributed.ranks import on_ranks

OPTIONS = {"k": 8, "tol": 1e-8, "rtol": 0.005, "max_hvps": 60, "seed": 3, "blocks": ["0", "2"]}
STOPPED_AFTER = 24  # products
MOST_LOST = 8  # products that are made together


class Killed(BaseException):
    pass


def operator(stop=10**9, dtype="float64", change=0.0):
    """An operator whose products end the run at a number of them.

    Some inputs are large, so that there are outliers: with these, differences of rounding grow from step to step.
    """
    model, data = classifier(5)
    model.to(getattr(torch, dtype))
    scale = torch.tensor([30.0, 10.0, 3.0, 1.0, 1.0, 0.3], dtype=torch.float64)
    data = [((inputs * scale + change).to(getattr(torch, dtype)), targets) for inputs, targets in data]
    H = hvpspec.HessianOperator(model, "cross_entropy", data, engine="autograd")
    spread = getattr(H, "spread", None) or H
    multiply = spread.multiply_by_folds

    def stopping(columns, folds, receive):
        if H.hvps + columns.shape[1] > stop:
            raise Killed
        return multiply(columns, folds, receive)

    spread.multiply_by_folds = stopping
    return H


def spectrum(folder, stop=10**9, dtype="float64", change=0.0, **options):
    """The figures, the products made by this process, and what was said; None where it was ended."""
    H = operator(stop, dtype, change)
    said = []
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        patch.setattr(Journal.__init__, "__kwdefaults__", {**Journal.__init__.__kwdefaults__, "say": said.append})
        try:
            found = hvpspec.spectrum(H, journal=folder, **{**OPTIONS, **options})
        except Killed:
            return None
    return {"figures": of_pass(found), "made": H.hvps, "said": said, "noted": [str(each.message) for each in noted]}


def bits(found):
    return {name: np.asarray(value).tobytes() for name, value in found["figures"].items()}


def records(folder, name):
    """Of a log, with its header; and the products in it."""
    log = LogFile(Path(folder) / name, only_read=True)
    count, products = sum(1 for _ in log.headers()), products_in(log)
    log.close()
    return count, products


def runs_of_two(rank, folder):
    """The runs of two ranks, one after another."""
    torch.distributed.barrier()
    run, found = Path(folder) / "run", {}
    found["never"] = spectrum(Path(folder) / "never")
    found["plain"] = spectrum(None)

    def again(name, spoil, **options):
        torch.distributed.barrier()
        if rank == 0:
            shutil.rmtree(run, ignore_errors=True)
            shutil.copytree(Path(folder) / "left", run)
            spoil(run)
        torch.distributed.barrier()
        try:
            found[name] = spectrum(run, **options)
        except InputError as error:
            found[name] = str(error)
        found[f"{name}, after"] = run.exists()

    spectrum(Path(folder) / "left", stop=STOPPED_AFTER)
    again("same", lambda run: None)
    again("shorter", lambda run: shorten(run / "rank-1-of-2.log"))
    again("flipped", lambda run: flip(run / "rank-1-of-2.log"))
    again("missing", lambda run: (run / "rank-1-of-2.log").unlink())
    again("foreign", lambda run: None, k=3)
    again("data", lambda run: None, change=1e-9)
    if rank == 0:
        (run / "rank-0-of-2.log").unlink()
        (run / "rank-1-of-2.log").unlink()
        shutil.copy(Path(folder) / "one/rank-0.log", run / "rank-0.log")
    torch.distributed.barrier()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OtherRanks, "take", dying_in(OtherRanks.take, 9))
        found["of one"] = spectrum(run)
    found["of one, again"] = spectrum(run)
    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:
            patch.setattr("hvpspec.krylov.log.log_file.write", full)
        found["full"] = spectrum(Path(folder) / "full")
    found["single"] = spectrum(Path(folder) / "single", stop=STOPPED_AFTER, dtype="float32")
    return found


def dying_in(function, number):
    """The function, which ends the run when it is called for that time."""
    calls = iter(range(number - 1))

    def call(*arguments):
        if next(calls, None) is None:
            raise Killed
        return function(*arguments)

    return call


def full(file, buffer):
    raise OSError(28, "No space left on device")


def shorten(path):
    """Without its last record."""
    log = LogFile(path)
    log.cut(sum(1 for _ in log.headers()) - 1)
    log.close()


def flip(path):
    """One bit in the middle, in the payload of a record."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def scale_product(path, factor):
    """The first product, in a log that is whole: as another operator would have left it."""
    log, changed = LogFile(path, only_read=True), LogFile(path.with_suffix(".new"))
    while (header := log.header()) is not None:
        if header.get("kind") not in ANSWERS:
            log.payload([])
            changed.append(header)
            continue
        columns, answer = read(log, header)
        answer.tensors[0].mul_(factor)
        factor = 1.0
        changed.append(header, [as_bytes(tensor) for tensor in (columns, *answer.tensors)])
    log.close()
    changed.close()
    path.with_suffix(".new").replace(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("journals")
    assert spectrum(folder / "one", stop=STOPPED_AFTER) is None
    return folder


@pytest.fixture(scope="module")
def of_two(folder):
    return on_ranks(runs_of_two, 2, str(folder))


def test_as_many_ranks_go_on_to_the_same_bits(of_two):
    for found in of_two:
        assert not found["same, after"]
        assert bits(found["never"]) == bits(found["plain"])
        for name in ("same", "shorter", "flipped", "missing"):
            assert bits(found[name]) == bits(found["plain"]), name
        made = found["plain"]["made"]
        assert found["same"]["made"] <= made - STOPPED_AFTER + MOST_LOST
        assert found["same"]["made"] <= found["shorter"]["made"] <= found["same"]["made"] + MOST_LOST
        assert found["shorter"]["made"] < found["flipped"]["made"] < found["missing"]["made"] == made
    first, second = of_two
    assert first["same"]["made"] == second["same"]["made"]
    assert "not whole on all ranks" in first["missing"]["noted"][0]
    assert second["missing"]["noted"] == []


def test_other_inputs_are_refused_on_all_ranks(of_two):
    for found in of_two:
        assert "other inputs (k: 8 then, 3 now)" in found["foreign"]
        assert "other inputs (batches: " in found["data"]


def test_a_full_disk_on_one_rank_costs_the_journal_of_all(of_two, folder):
    for found in of_two:
        assert bits(found["full"]) == bits(found["plain"])
    assert "it cannot be written (No space left on device)" in of_two[0]["full"]["noted"][0]
    assert not (folder / "full").exists()


def taken(found):
    (said,) = found["said"]
    words = said.split(": ")[1].split()
    return int(words[0]), int(words[2])


def same(found, expected):
    for name, value in expected["figures"].items():
        np.testing.assert_allclose(found["figures"][name], value, rtol=1e-9, atol=1e-9, err_msg=name)


def test_two_ranks_take_over_what_one_process_has_left(of_two, folder):
    made = records(folder / "one", "rank-0.log")[1]
    for found in of_two:
        assert found["of one"] is None
        same(found["of one, again"], found["plain"])
        assert found["of one, again"]["made"] <= found["plain"]["made"] - made + 2  # two are compared
    assert taken(of_two[0]["of one, again"]) == (made - 8, made)


def on_three(rank, folder):
    found = {"plain": spectrum(None), "of two": spectrum(Path(folder) / "three"), "left": None}
    found["single"] = spectrum(Path(folder) / "single", dtype="float32")
    return found


def test_three_ranks_take_over_from_two_and_one_process_too(of_two, folder):
    made = records(folder / "left", "rank-1-of-2.log")[1]
    single = records(folder / "single", "rank-0-of-2.log")[1]
    shutil.copytree(folder / "left", folder / "three")
    shutil.copytree(folder / "left", folder / "alone")
    for found in [*on_ranks(on_three, 3, str(folder)), {"of two": spectrum(folder / "alone"), "plain": spectrum(None)}]:
        same(found["of two"], found["plain"])
        assert found["of two"]["made"] <= found["plain"]["made"] - made + 2
        if found["of two"]["said"]:
            assert taken(found["of two"]) == (made, made)
        if "single" in found and found["single"]["said"]:
            assert taken(found["single"]) == (single, single)
    assert not (folder / "three").exists()
    assert not (folder / "alone").exists()


def test_a_product_that_does_not_belong_to_its_vector_ends_the_taking_over(of_two, folder):
    shutil.copytree(folder / "left", folder / "scaled")
    for rank in (0, 1):
        scale_product(folder / f"scaled/rank-{rank}-of-2.log", 1 + 1e-7)
    found = spectrum(folder / "scaled")
    assert taken(found)[0] == 0
    assert bits(found) == bits(spectrum(None))


def test_logs_of_other_inputs_and_parts_of_logs_are_not_taken_over(of_two, folder):
    shutil.copytree(folder / "left", folder / "others")
    with pytest.raises(InputError, match=r"other inputs \(k: 8 then, 3 now\)"):
        spectrum(folder / "others", k=3)
    (folder / "others/rank-1-of-2.log").unlink()
    found = spectrum(folder / "others", k=3)
    assert found["said"] == []
    assert bits(found) == bits(spectrum(None, k=3))
    assert not (folder / "others").exists()


def test_starting_over_removes_what_other_ranks_have_left(of_two, folder):
    again = folder / "again"
    shutil.copytree(folder / "left", again)
    with pytest.raises(InputError, match="left by an interrupted run with other inputs"):
        Journal(again, {"seed": 1})
    with Journal(again, {"seed": 1}, replace=True) as journal:
        assert journal.left is None
        assert not journal.replaying
        journal.finish()
    assert not again.exists()
    shutil.copytree(folder / "left", again)
    with Journal(again, {"seed": 1}, restart=True) as journal:
        assert journal.left is None
        assert [path.name for path in again.iterdir()] == ["rank-0.log"]
    assert not again.exists()


def test_what_other_ranks_have_left_outlives_a_run_that_ends_at_once(of_two, folder):
    shutil.copytree(folder / "left", folder / "short")
    _, inputs = left_by_others(folder / "short", 1, FORMAT)
    with pytest.raises(KeyboardInterrupt), Journal(folder / "short", inputs):
        raise KeyboardInterrupt  # before anything was taken over
    assert {path.name for path in (folder / "short").iterdir()} == {"rank-0-of-2.log", "rank-1-of-2.log"}
