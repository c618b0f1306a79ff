"""Offline and private: no network unless a hub name is asked for, nothing beside raw slides, no label in any output."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import openslide
import pytest
from PIL import Image
from safetensors.torch import save
from torch import zeros

from tests.zoomfeat.odd_slides import LABEL, MACRO, aperio, tiff, tissue
from zoomfeat.bags import Bag
from zoomfeat.cli import main
from zoomfeat.encoders import encoder_info


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every look-up of a name and every connection fails, and is noted."""
    asked: list[object] = []

    def refuse(*arguments: object, **keys: object) -> None:
        asked.append(arguments)
        raise OSError("no network in this test")

    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    return asked


def test_extraction_asks_no_network(no_network: list[object], tmp_path: Path) -> None:
    (tmp_path / "slides").mkdir()
    tiff(tmp_path / "slides" / "a.tif", [tissue(512)])
    words = [f"slides={tmp_path / 'slides'}", f"out={tmp_path / 'out'}", "encoder=zoomldm-tiny", "min_tissue=0.3"]
    assert main(["extract", *words]) == 0
    assert not no_network
    assert main(["extract", *words[:1], f"out={tmp_path / 'hub'}", "encoder=resnet50"]) == 1  # this one asks the hub
    assert no_network


def test_nothing_is_written_beside_raw_slides_and_no_label_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The label and the macro image of an SVS show names and numbers of patients."""
    raw = tmp_path / "raw"
    raw.mkdir()
    aperio(raw / "a.svs", tissue())
    with openslide.OpenSlide(raw / "a.svs") as slide:
        assert {"label", "macro"} <= set(slide.associated_images)
        assert slide.associated_images["label"].convert("RGB").getpixel((5, 5)) == pytest.approx(LABEL, abs=6)
    looked: list[str] = []
    monkeypatch.setattr(openslide.OpenSlide, "associated_images", property(lambda self: looked.append("label")))
    (raw / "notes.txt").write_text("of a person")
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in raw.rglob("*")}
    raw.chmod(0o555)
    out = tmp_path / "out"
    try:
        words = [f"slides={raw}", f"out={out}", "encoder=color-stats", "quality=[blur,dark,pen]"]
        assert main(["extract", *words]) == 0
        assert main(["verify", str(out)]) == 0
        assert main(["convert", f"source={out}", "to=clam", f"out={tmp_path / 'clam'}"]) == 0
    finally:
        raw.chmod(0o755)
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in raw.rglob("*")} == before
    assert not looked
    pictures = [path for path in out.rglob("*") if path.suffix in (".png", ".jpg", ".tif")]
    assert pictures
    for path in pictures:
        pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3).astype(int)
        for colour in (LABEL, MACRO):
            assert np.abs(pixels - colour).max(axis=1).min() > 40
    assert str(tmp_path) not in "".join(map(str, vars(Bag.open(out / "a.h5").metadata).values()))


# --- fetch


@dataclass
class Hub:
    """A stand-in for the Hugging Face hub, which cannot be reached from a test: a file, and what was asked for.

    Attributes:
        address: of the server.
        data: the file that it serves for every name.
        gated: whether it wants a login first.
        asked: method and path of each request.
    """

    address: str
    data: bytes
    gated: bool = False
    asked: list[tuple[str, str]] = field(default_factory=list)


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    hub = Hub(f"http://127.0.0.1:{server.server_port}", save({"a": zeros(3)}))

    class Answers(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            hub.asked.append((self.command, self.path))
            if hub.gated:
                self.send_response(401)
                self.send_header("X-Error-Code", "GatedRepo")
                self.send_header("X-Error-Message", "Access to this model is restricted")
                self.send_header("Content-Length", "0")
            else:
                self.send_response(200)
                self.send_header("X-Repo-Commit", self.path.split("/")[4])
                self.send_header("ETag", f'"{zlib.crc32(self.path.encode())}"')  # one file a name
                self.send_header("Content-Length", str(len(hub.data)))
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            if not hub.gated:
                self.wfile.write(hub.data)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server.RequestHandlerClass = Answers
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield hub
    server.shutdown()
    server.server_close()


def fetch(hub: Hub, cache: Path, *models: str, offline: bool = False) -> list[tuple[int, str]]:
    """Exit code and output of ``zoomfeat fetch`` for each model, in one process that knows no other hub."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()}
    settings = {"HF_ENDPOINT": hub.address, "HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1"}
    settings |= {"HF_HUB_OFFLINE": "1"} if offline else {}
    program = (
        "import contextlib, io, sys\nfrom zoomfeat.cli import main\n"
        "for model in sys.argv[1:]:\n"
        "    text = io.StringIO()\n"
        "    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):\n"
        "        code = main(['fetch', f'model={model}'])\n"
        "    print(code, text.getvalue().encode().hex())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *models], env=kept | settings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answers = (line.split(" ") for line in done.stdout.splitlines())
    return [(int(code), bytes.fromhex(text).decode()) for code, text in answers]


@pytest.mark.timeout(900)  # two processes that import PyTorch, on a machine that may be busy
def test_fetch_brings_the_commit_that_is_documented_and_then_needs_no_network(hub: Hub, tmp_path: Path) -> None:
    info = encoder_info("resnet50")
    (code, text), (zoomldm, _) = fetch(hub, tmp_path / "hf", "resnet50", "zoomldm-brca")
    assert code == zoomldm == 0, text
    path = f"/{info.hub}/resolve/{info.revision}/{info.file}"
    assert ("GET", path) in hub.asked
    brca = encoder_info("zoomldm-brca")
    for name in ("brca/weights.ckpt", "brca/config.yaml"):
        assert ("GET", f"/{brca.hub}/resolve/main/{name}") in hub.asked
    (stored,) = (tmp_path / "hf" / "hub").rglob(f"snapshots/{info.revision}/{info.file}")
    assert stored.read_bytes() == hub.data
    assert str(stored) in text
    assert "HF_HUB_OFFLINE=1" in text

    hub.asked.clear()
    (again, told), (missing, cure) = fetch(hub, tmp_path / "hf", "resnet50", "phikon", offline=True)
    assert again == 0, told
    assert str(stored) in told
    assert missing == 1
    assert "owkin/phikon" in cure
    assert not hub.asked  # offline is offline, for what is there and for what is not


def test_fetch_of_a_gated_model_says_what_to_do(hub: Hub, tmp_path: Path) -> None:
    hub.gated = True
    ((code, text),) = fetch(hub, tmp_path / "hf", "uni")
    assert code == 1
    assert "accept its terms at https://huggingface.co/MahmoodLab/UNI and log in with `hf auth login`" in text
    assert text.count("\n") == 1
    assert not list((tmp_path / "hf").rglob("pytorch_model.bin"))


@pytest.mark.parametrize("model", ["color-stats", "zoomldm-tiny", "efficientnet-lite0"])
def test_fetch_of_what_comes_with_zoomfeat(model: str, no_network: list[object], capsys: pytest.CaptureFixture) -> None:
    assert main(["fetch", model]) == 0
    assert f"{model} needs no download" in capsys.readouterr().out
    assert not no_network
