"""Broken files by the thousand: whole ones, changed at random, are met by a process that may crash or hang.

Case ``n`` of a corpus is the same bytes every time, so its number is all that a found crash needs to be told by.
"""

from __future__ import annotations

import json
import math
import os
import select
import shutil
import struct
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

WORKER = Path(__file__).with_name("fuzz_worker.py")
_INTERESTING = (0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 10**9, 2**31 - 1, 2**31, 2**32 - 1)
_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 16: 8, 17: 8, 18: 8}


def mutated(data: bytes, case: int) -> bytes:
    """A file changed in one to four places, of ways that a generator seeded with ``case`` chooses."""
    rng = np.random.default_rng([20, case])
    changed = bytearray(data)
    entries = _tiff_entries(data)
    for _ in range(int(rng.choice([1, 1, 1, 2, 2, 3, 4]))):
        if len(changed) < 64:
            break
        if entries and rng.random() < 0.5:
            _change_entry(changed, entries, rng)
        else:
            _WAYS[int(rng.integers(len(_WAYS)))](changed, rng)
    return bytes(changed)


def _place(data: bytearray, rng: np.random.Generator) -> int:
    """Half of the time in the head of the file or near its end, where formats keep their tables."""
    near = int(rng.integers(min(len(data), 2048)))
    return (near, len(data) - 1 - near, *rng.integers(len(data), size=2).tolist())[int(rng.integers(4))]


def _flip(data: bytearray, rng: np.random.Generator) -> None:
    for _ in range(int(rng.integers(1, 9))):
        data[_place(data, rng)] ^= 1 << int(rng.integers(8))


def _number(data: bytearray, rng: np.random.Generator) -> None:
    size = int(rng.choice([1, 2, 4, 8]))
    value = int(rng.choice(_INTERESTING)) % 256**size
    at = min(_place(data, rng), len(data) - size)
    data[at : at + size] = value.to_bytes(size, "little" if rng.random() < 0.8 else "big")


def _zeros(data: bytearray, rng: np.random.Generator) -> None:
    at, length = _place(data, rng), int(rng.integers(1, 512))
    end = min(at + length, len(data))
    data[at:end] = bytes([int(rng.choice([0, 255]))]) * (end - at)


def _cut(data: bytearray, rng: np.random.Generator) -> None:
    del data[max(32, _place(data, rng)) :]


def _remove(data: bytearray, rng: np.random.Generator) -> None:
    at = _place(data, rng)
    del data[at : at + int(rng.integers(1, 64))]


def _repeat(data: bytearray, rng: np.random.Generator) -> None:
    at, source = _place(data, rng), _place(data, rng)
    data[at:at] = data[source : source + int(rng.integers(1, 64))]


_WAYS = (_flip, _flip, _number, _number, _zeros, _cut, _remove, _repeat)


def _tiff_entries(data: bytes) -> list[int]:
    """Where the entries of all directories of a little-endian classic TIFF lie, 12 bytes each (TIFF 6.0, section 2)."""
    if data[:4] != b"II*\0":
        return []
    found: list[int] = []
    (at,) = struct.unpack_from("<I", data, 4)
    while at and at + 2 <= len(data) and len(found) < 1000:
        (count,) = struct.unpack_from("<H", data, at)
        found += [at + 2 + 12 * entry for entry in range(count)]
        if at + 6 + 12 * count > len(data):
            break
        (at,) = struct.unpack_from("<I", data, at + 2 + 12 * count)
    return [entry for entry in found if entry + 12 <= len(data)]


def _change_entry(data: bytearray, entries: list[int], rng: np.random.Generator) -> None:
    """Tag, type, number of values, or value: of the entry itself or where it points to."""
    at = int(rng.choice(entries))
    if at + 12 > len(data):
        return
    _, kind, count, value = struct.unpack_from("<HHII", data, at)
    what = int(rng.integers(6))
    new = int(rng.choice([*_INTERESTING, value + 1, max(value - 1, 0), value * 2, value // 2])) % 2**32
    if what == 0:
        struct.pack_into(
            "<H", data, at, int(rng.choice([254, 256, 257, 259, 262, 277, 322, 323, 324, 325, 347, 32997]))
        )
    elif what == 1:
        struct.pack_into("<H", data, at + 2, int(rng.integers(0, 20)))
    elif what == 2:
        struct.pack_into("<I", data, at + 4, new)
    elif count * _TYPE_SIZES.get(kind, 1) > 4 and what > 3 and value + 4 <= len(data):  # one of many values
        struct.pack_into("<I", data, min(value + 4 * int(rng.integers(max(1, min(count, 64)))), len(data) - 4), new)
    else:
        struct.pack_into("<I", data, at + 8, new)


@dataclass
class Findings:
    """What a worker made of a corpus.

    Attributes:
        cases: how many files it met.
        seconds: how long that took.
        answers: status to number of files: done, failed (a row of the report), refused (an error that says why).
        broke: case to an error that nobody planned for.
        crashed: case to the signal that ended the worker.
        hung: cases without an answer in time.
    """

    cases: int = 0
    seconds: float = 0.0
    answers: Counter[str] = field(default_factory=Counter)
    broke: dict[int, str] = field(default_factory=dict)
    crashed: dict[int, int] = field(default_factory=dict)
    hung: list[int] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether every file was extracted, or refused as it should be."""
        return not (self.broke or self.crashed or self.hung)


class Worker:
    """A process that meets files, started when there is one to meet, and anew after a crash.

    Args:
        patience: seconds of processor time after which a worker without an answer counts as hung.
    """

    def __init__(self, patience: float = 30) -> None:
        self._patience = patience
        self._process: subprocess.Popen[bytes] | None = None

    def meet(self, path: Path) -> dict[str, str]:
        """Its answer; ``{"status": "crashed"}`` with the signal, or ``{"status": "hung"}``."""
        process = self._started()
        assert process.stdin is not None
        process.stdin.write(f"{path}\n".encode())
        process.stdin.flush()
        answer = self._line(process, self._patience)
        if answer:
            return json.loads(answer)
        status = "crashed" if answer == b"" else "hung"
        if status == "hung":
            process.kill()
        signal = -process.wait()
        self._process = None
        return {"status": status, "error": str(signal)}

    def close(self) -> None:
        """Ends it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
            self._process = subprocess.Popen(
                [sys.executable, str(WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
            )
            assert self._line(self._process, math.inf) == b'"ready"\n'
        return self._process

    @staticmethod
    def _line(process: subprocess.Popen[bytes], patience: float) -> bytes | None:
        """A line of its output, nothing where it ended, None where it works longer or sleeps 20 times as long.

        A busy machine counts for neither: a process that gets little of it does little work, but some.
        """
        assert process.stdout is not None
        begun = seen = _processor_seconds(process.pid)
        awake = time.monotonic()
        while not select.select([process.stdout], [], [], 1)[0]:
            now = _processor_seconds(process.pid)
            if now > seen:
                seen, awake = now, time.monotonic()
            if now - begun > patience or time.monotonic() - awake > 20 * patience:
                return None
        return process.stdout.readline()


def _processor_seconds(pid: int) -> float:
    """What a process has worked so far: unlike time on the clock, the same on a busy machine."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def meet_corpus(
    worker: Worker, files: list[Path], folder: Path, cases: range, kind: str, *, until: float = math.inf
) -> Findings:
    """Lets a worker meet changed copies of files.

    Args:
        worker: it is started where it is not.
        files: the whole ones; case ``n`` is a copy of the one at ``n`` modulo their number.
        folder: an empty one to work in.
        cases: their numbers.
        kind: what they are, of `fuzz_worker.MEETINGS`.
        until: ``time.monotonic()`` after which no further case is begun.
    """
    findings, start = Findings(), time.monotonic()
    place = folder / kind
    for case in cases:
        if time.monotonic() > until:
            break
        source = files[case % len(files)]
        for used in (place, folder / "out"):
            shutil.rmtree(used, ignore_errors=True)
        place.mkdir()
        path = place / f"case-{case}{source.suffix}"
        data = mutated(source.read_bytes(), case)
        path.write_bytes(data)
        answer = worker.meet(path)
        findings.cases += 1
        if answer["status"] == "crashed":
            findings.crashed[case] = int(answer["error"])
        elif answer["status"] == "hung":
            findings.hung.append(case)
        elif answer["status"] == "broke":
            findings.broke[case] = answer["error"]
        else:
            findings.answers[answer["status"]] += 1
        assert path.read_bytes() == data, "the file was written to"
        assert {entry.name for entry in folder.iterdir()} <= {kind, "out"}, "files outside the output folder"
    findings.seconds = time.monotonic() - start
    return findings
