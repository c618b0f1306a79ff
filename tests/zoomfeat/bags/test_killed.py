"""A process that is killed while it writes leaves whole bags or none."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

from zoomfeat.bags import Bag, validate

WRITER = """
import sys
from pathlib import Path
from zoomfeat.bags import Bag

template = Bag.open(sys.argv[1])
folder = Path(sys.argv[2])
print("ready", flush=True)
number = 0
while True:
    template.save(folder / f"slide_{number % 5}.h5")
    number += 1
"""


def test_sigkill_leaves_whole_bags_or_none(tmp_path, saved, make_bag):
    template = saved(make_bag(dim=1024, tiles=(8, 4)))  # 1.4 MB, so that most kills hit the middle of a write
    folder = tmp_path / "killed"
    folder.mkdir()
    rng = random.Random(0)
    for _ in range(6):
        command = [sys.executable, "-c", WRITER, str(template), str(folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
            time.sleep(rng.uniform(0.02, 0.3))
            assert writer.poll() is None
            writer.kill()
        for path in folder.glob("*.h5"):
            validate(path)
    bags = sorted(folder.glob("*.h5"))
    assert bags
    assert all(len(Bag.open(path)) == len(Bag.open(template)) for path in bags)
    leftovers = set(folder.iterdir()) - set(bags)
    assert all(path.name.startswith(".slide_") and path.suffix == ".tmp" for path in leftovers)
