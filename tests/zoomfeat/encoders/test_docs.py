"""docs/encoders.md: its tables are the registry's, and its example runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from zoomfeat.cli import main
from zoomfeat.commands.encoders import source_of
from zoomfeat.encoders import encoder_info, encoder_names, load_encoder, registry
from zoomfeat.errors import ConfigurationError
from zoomfeat.extraction import extract_slide
from zoomfeat.slides import slides

PAGE = Path(__file__).parents[3] / "docs" / "encoders.md"


def rows(names: int) -> dict[str, list[str]]:
    """Cells of the table with that many columns, by the name in the first."""
    found = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == names and cells[0] != "encoder=":
            found[cells[0]] = cells
    return found


def test_the_tables_are_the_registrys():
    facts, sources = rows(9), rows(6)
    assert sorted(facts) == encoder_names()
    assert sorted(sources) == [name for name in encoder_names() if encoder_info(name).hub]
    for name, cells in facts.items():
        info = encoder_info(name)
        size = "-" if info.input_size is None else f"{info.input_size} px"
        parameters = f"{info.parameters / 1e6:.1f} M" if info.parameters else "-"
        stated = [str(info.dim), size, info.interpolation or "-", info.feature, info.magnification or "-", parameters]
        assert [cells[2], cells[3], *cells[5:]] == stated
    for name, cells in sources.items():
        info = encoder_info(name)
        licence = info.licence or "see the hub"
        assert cells[1:] == [licence, "yes" if info.gated else "no", info.hub, info.file, info.revision]


def test_the_command_prints_the_facts_unabridged(capsys):
    assert main(["encoders"]) == 0
    text = capsys.readouterr().out
    for name in encoder_names():
        info = encoder_info(name)
        line = next(line for line in text.splitlines() if line.split()[:1] == [name])
        assert str(info.dim) in line.split()
        assert (info.licence or "-") in line
        assert line.split()[-1] == ("yes" if info.gated else "no")
        assert source_of(info) in " ".join(text.split())


def test_a_source_is_said_to_ship_only_where_it_does():
    sources = {name: source_of(encoder_info(name)) for name in encoder_names() if not encoder_info(name).hub}
    shipped = {name for name, source in sources.items() if source == "comes with zoomfeat"}
    assert {"color-stats", "zoomldm-tiny"} <= shipped
    for name in shipped:
        assert load_encoder(name, device="cpu").dim == encoder_info(name).dim
    for name in sources.keys() - shipped:
        with pytest.raises(ConfigurationError, match="no weights"):
            load_encoder(name, device="cpu")


@pytest.fixture
def registered(monkeypatch):
    """What a test registers is gone after it."""
    encoder_names()  # so that the encoders of zoomfeat itself stay
    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))
    monkeypatch.setattr(registry, "_INFOS", dict(registry._INFOS))


def test_the_example_adds_an_encoder(registered, monkeypatch, tmp_path, cohort, extract_config):
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(example.splitlines()) < 30
    torch.manual_seed(0)
    network = timm.create_model("deit_tiny_patch16_224", pretrained=False).eval()
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(example, str(PAGE), "exec"), names)
    encoder = names["encoder"]
    assert (encoder.name, encoder.dim, encoder_info("deit-tiny").summary) == ("deit-tiny", 192, "DeiT-Ti, ImageNet.")
    patches = np.random.default_rng(0).integers(0, 256, (1, 256, 256, 3), dtype=np.uint8)
    with torch.no_grad():
        inputs = encoder.transform(patches).to(encoder.device)
        expected = network.to(encoder.device).forward_head(network.forward_features(inputs), pre_logits=True)
    np.testing.assert_allclose(encoder(patches), expected.cpu(), rtol=1e-4, atol=1e-5)

    path = cohort / "slide-0.5.tiff"
    (entry,) = slides(path)
    report = extract_slide(entry, extract_config(path, "magnifications=[5x]", "preview=false"), encoder)
    assert (report.status, report.encoder) == ("done", "deit-tiny")
