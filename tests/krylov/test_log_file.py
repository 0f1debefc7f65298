"""A log ends at what is torn, changed or out of place, and goes on from there."""

import os
import zlib

import pytest

from hvpspec.krylov.log import log_file
from hvpspec.krylov.log.log_file import LogFile

RECORDS = [({"kind": "first", "number": 0.1}, [b"abc"]), ({"kind": "none"}, []), ({"ä": [1, None]}, [b"", b"x" * 70])]


@pytest.fixture
def written(tmp_path):
    log = LogFile(tmp_path / "log")
    for header, parts in RECORDS:
        log.append(header, parts)
    log.sync()
    log.close()
    return tmp_path / "log"


def read(path):
    """The records that are read, with their payloads, and the log after them."""
    log, found = LogFile(path), []
    while (header := log.header()) is not None:
        payload = bytearray(header["bytes"])
        if not log.payload([memoryview(payload)]):
            break
        found.append(({name: value for name, value in header.items() if name not in ("bytes", "crc")}, bytes(payload)))
    return found, log


EXPECTED = [(header, b"".join(parts)) for header, parts in RECORDS]


def test_what_is_written_is_read(written):
    found, log = read(written)
    assert found == EXPECTED
    assert log.records == 3
    log.close()
    log = LogFile(written)
    assert [header["bytes"] for header in log.headers()] == [3, 0, 70]
    assert log.end == 0
    log.close()


def test_wherever_it_is_cut_or_a_bit_is_flipped_the_records_before_are_read_and_it_goes_on(written, tmp_path):
    content = written.read_bytes()
    ends = []
    log = LogFile(written)
    for header in list(log.headers()):
        log.payload([memoryview(bytearray(header["bytes"]))])
        ends.append(log.end)
    log.close()
    assert ends[-1] == len(content)
    damaged = tmp_path / "damaged"
    for at in range(len(content)):
        flipped = bytearray(content)
        flipped[at] ^= 1 << (at % 8)
        for spoilt in (content[:at], bytes(flipped), content[:at] + b"\0" * (len(content) - at)):
            if spoilt == content:
                continue
            damaged.write_bytes(spoilt)
            found, log = read(damaged)
            good = sum(end <= at for end in ends)
            if spoilt[: ends[good]] == content[: ends[good]]:
                good += 1  # zeros that were there before
            assert found == EXPECTED[:good]
            log.append({"kind": "again"}, [b"new"])
            log.close()
            assert read(damaged)[0] == [*EXPECTED[:good], ({"kind": "again"}, b"new")]


def test_records_of_another_log_or_another_place_do_not_count(written, tmp_path):
    content, other = written.read_bytes(), tmp_path / "other"
    log = LogFile(other)
    log.append({"kind": "another first"}, [b"abc"])
    end = log.end
    log.close()
    first = LogFile(written)
    first.payload([memoryview(bytearray(3))])
    other.write_bytes(other.read_bytes()[:end] + content[first.end :])
    assert [header for header, _ in read(other)[0]] == [{"kind": "another first"}]
    twice = tmp_path / "twice"
    twice.write_bytes(content[: first.end] * 2 + content[first.end :])
    first.close()
    assert read(twice)[0] == EXPECTED[:1]


def test_half_a_record_does_not_stay_after_an_error(written, monkeypatch):
    log, size = LogFile(written), written.stat().st_size
    for header in list(log.headers()):
        log.payload([memoryview(bytearray(header["bytes"]))])
    whole = log_file.write

    def full(file, buffer):
        whole(file, bytes(buffer)[: len(buffer) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(log_file, "write", full)
    with pytest.raises(OSError, match="No space left"):
        log.append({"kind": "lost"}, [b"12345678"])
    assert written.stat().st_size == size
    monkeypatch.setattr(log_file, "write", whole)
    log.append({"kind": "last"}, [b"1"])
    log.close()
    assert read(written)[0][-1] == ({"kind": "last"}, b"1")


def test_a_system_that_takes_less_at_once(written, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, buffer: write(file, bytes(buffer)[:5]))
    log = LogFile(written)
    log.append({"kind": "slow"}, [b"123456789"])
    log.close()
    assert read(written)[0] == [({"kind": "slow"}, b"123456789")]


def test_records_are_left_out_gone_back_to_and_cut_off(written):
    log = LogFile(written, only_read=True)
    start = log.position
    log.skip()
    assert (log.records, log.header()["kind"]) == (1, "none")
    log.position = start
    assert log.header()["kind"] == "first"
    log.close()
    log = LogFile(written)
    log.cut(2)
    assert log.records == 0
    log.close()
    assert read(written)[0] == EXPECTED[:2]


def test_a_checksum_that_is_known_is_not_computed_again(tmp_path):
    log = LogFile(tmp_path / "log")
    log.append({}, [b"abc", b"de"], zlib.crc32(b"abc"))
    log.close()
    assert read(tmp_path / "log")[0] == [({}, b"abcde")]
