"""Puts trained weights into the package: ``python -m benchmarks.tiny.ship LDM [CDM]``.

They are stored as float16, which halves the file and is read back as float32.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch

from generation.conditioning import ConditioningDiT
from zoomfeat.encoders.zoomldm import TINY
from zoomfeat.models.zoomldm import ZoomLDM


def main() -> None:
    """Replaces the weights of `zoomldm-tiny`; its model card stays."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ldm", type=Path, help="model folder of a checkpoint of train-ldm")
    parser.add_argument("cdm", type=Path, nargs="?", help="model folder of a checkpoint of train-cdm")
    arguments = parser.parse_args()
    for folder in (path for path in TINY.glob("*") if path.is_dir()):
        shutil.rmtree(folder)
    ZoomLDM.load(arguments.ldm).to(torch.float16).save_pretrained(TINY)
    if arguments.cdm is not None:
        ConditioningDiT.load(arguments.cdm).to(torch.float16).save_pretrained(TINY / "cdm")
    for path in TINY.rglob("*.json"):
        stored = json.loads(path.read_text(encoding="utf-8"))
        stored.pop("_name_or_path", None)  # where they lay here is nobody's business
        path.write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")
    for path in TINY.rglob("*.safetensors"):
        path.chmod(0o644)
    megabytes = sum(path.stat().st_size for path in TINY.rglob("*") if path.is_file()) / 1e6
    print(f"{TINY}: {megabytes:.1f} MB")


if __name__ == "__main__":
    main()
