"""Claims: one holder at a time, for as long as it lives, whatever the clocks say."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from zoomfeat.claims import Claims, file_time, sweep, this_process
from zoomfeat.errors import ZoomfeatError


def leave_claim(folder: Path, **changes: object) -> Path:
    """What a process leaves behind that died while it held a claim."""
    folder.mkdir(exist_ok=True)
    path = folder / "slide.claim"
    path.write_text(json.dumps(asdict(replace(this_process(), **changes))))
    return path


def test_one_holder_at_a_time(tmp_path):
    with Claims(tmp_path).hold("slide") as mine, Claims(tmp_path).hold("slide") as second:
        assert (mine, second) == (True, False)
        assert Claims(tmp_path).holder("slide") == this_process()
        assert Claims(tmp_path).held() == ["slide"]
    assert list(tmp_path.iterdir()) == []
    with Claims(tmp_path).hold("slide") as again:
        assert again


def test_many_at_once_have_one_winner(tmp_path):
    start, over, won = threading.Barrier(16), threading.Barrier(16), []

    def compete() -> None:
        start.wait()
        with Claims(tmp_path).hold("slide") as mine:
            won.append(mine)
            over.wait()

    threads = [threading.Thread(target=compete) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == [False] * 15 + [True]


@pytest.fixture
def threads_that_alternate():
    """Threads that interrupt each other every few instructions, so that races are met."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("threads_that_alternate")
def test_many_that_take_an_expired_claim_over_have_one_winner(tmp_path):
    for _ in range(100):
        leave_claim(tmp_path, process=2**22 + 1)
        start, over, won = threading.Barrier(8), threading.Barrier(8), []

        def compete(start=start, over=over, won=won) -> None:
            start.wait()
            with Claims(tmp_path).hold("slide") as mine:
                won.append(mine)
                over.wait()

        threads = [threading.Thread(target=compete) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert won.count(True) == 1
        assert list(tmp_path.iterdir()) == []


def test_a_dead_process_of_this_machine_holds_nothing(tmp_path):
    leave_claim(tmp_path, process=2**22 + 1)  # above the largest number that Linux gives
    with Claims(tmp_path).hold("slide") as mine:
        assert mine


def test_a_number_that_another_process_has_now_is_a_dead_one(tmp_path):
    leave_claim(tmp_path, started="1")
    with Claims(tmp_path).hold("slide") as mine:
        assert mine


def test_a_process_of_another_machine_holds_until_it_stops_touching(tmp_path):
    path = leave_claim(tmp_path, machine="another", host="far")
    claims = Claims(tmp_path, expires=60)
    with claims.hold("slide") as mine:
        assert not mine
        assert str(claims.holder("slide")).endswith("on far")
    os.utime(path, (file_time(tmp_path) - 61,) * 2)
    assert claims.held() == []
    with claims.hold("slide") as mine:
        assert mine


def test_a_claim_from_the_future_expires_too(tmp_path):
    path = leave_claim(tmp_path, machine="another")
    os.utime(path, (file_time(tmp_path) + 3600,) * 2)
    with Claims(tmp_path, expires=60).hold("slide") as mine:
        assert mine


def test_clocks_that_differ_change_nothing(tmp_path, monkeypatch):
    leave_claim(tmp_path, machine="another")
    now = time.time
    for skew in (-86_400, 86_400):
        monkeypatch.setattr(time, "time", lambda skew=skew: now() + skew)
        with Claims(tmp_path).hold("slide") as mine:
            assert not mine


def test_a_claim_is_touched_while_it_is_held(tmp_path):
    with Claims(tmp_path, heartbeat=0.01).hold("slide"):
        path = tmp_path / "slide.claim"
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 60
        while path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > 0


def test_a_claim_that_was_taken_over_is_not_taken_back(tmp_path):
    with Claims(tmp_path, heartbeat=0.01).hold("slide"):
        (tmp_path / "slide.claim").unlink()
        path = leave_claim(tmp_path, host="thief")
        os.utime(path, (0, 0))
        time.sleep(0.1)
        assert path.stat().st_mtime == 0  # nor is it touched
    assert Claims(tmp_path).holder("slide").host == "thief"


def test_a_claim_that_was_never_filled_counts_by_its_time(tmp_path):
    path = tmp_path / "slide.claim"
    path.touch()
    with Claims(tmp_path).hold("slide") as mine:
        assert not mine
    os.utime(path, (0, 0))
    with Claims(tmp_path).hold("slide") as mine:
        assert mine


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ZoomfeatError, match="cannot be made"), Claims(tmp_path / "file" / "claims").hold("slide"):
        pass


def test_sweep_spares_what_is_being_written(tmp_path):
    old, new = tmp_path / ".a.h5.1.ab.tmp", tmp_path / ".b.h5.2.cd.tmp"
    (tmp_path / "bag.h5").touch()
    for path in (old, new):
        path.touch()
    os.utime(old, (0, 0))
    assert sweep(tmp_path, unchanged_for=60) == [old]
    assert sweep(tmp_path, ".b.h5.*.tmp") == [new]
    assert [path.name for path in tmp_path.iterdir()] == ["bag.h5"]
