"""The command line as its users meet it: help, errors of one line, and every command on real files."""

from __future__ import annotations

import csv
import subprocess
import sys

import numpy as np
import pytest
import yaml

from zoomfeat import __version__
from zoomfeat.bags import Bag
from zoomfeat.cli import COMMANDS, main
from zoomfeat.conf import schema
from zoomfeat.conf.compose import compose_config, describe_config
from zoomfeat.models.zoomldm import ZoomLDM


@pytest.mark.parametrize("words", [["--help"], ["extract", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(words):
    code = f"import sys; from zoomfeat.cli import main; main({words}); print(sorted(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *answer, loaded = run.stdout.splitlines()
    assert answer
    assert not any(f"'{name}'" in loaded for name in ("torch", "diffusers", "hydra", "pandas", "numpy"))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_key(command, capsys):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    for key, meaning in schema.explanations(schema.COMMAND_CONFIGS[command]).items():
        assert f"  {key} (" in text
        assert meaning in text
    assert all(len(meaning) > 10 for meaning in schema.explanations(schema.COMMAND_CONFIGS[command]).values())


def test_commands_and_configurations_agree():
    assert COMMANDS.keys() == schema.COMMAND_CONFIGS.keys()


def test_cfg_job_explains_and_stops(capsys, tmp_path):
    out = tmp_path / "bags"
    assert (
        main(
            [
                "extract",
                "slides=x",
                f"out={out}",
                "encoder=zoomldm-tiny",
                "encoder.taps=mid,up_blocks.1",
                "--cfg",
                "job",
            ]
        )
        == 0
    )
    text = capsys.readouterr().out
    assert not out.exists()
    config = yaml.safe_load(text)
    assert config["encoder"]["taps"] == ["mid", "up_blocks.1"]
    assert config["domain"] == "brca"
    assert config["magnifications"] is None  # those of the domain
    assert all("#" in line for line in text.splitlines())


def test_the_overview_lists_every_command(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)
    assert main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize("encoder", schema.ENCODERS)
def test_every_encoder_composes(encoder):
    config = compose_config("extract", ["slides=x", "out=y", f"encoder={encoder}"])
    assert isinstance(config, schema.ExtractConfig)
    assert config.encoder.name == encoder
    assert type(config.encoder) is schema.ENCODER_CONFIGS[schema.ENCODERS[encoder]]


@pytest.mark.parametrize(
    "value",
    [
        "/data/My slides (2)",
        "a,b=c",
        "it's here",
        'say "x"',
        "back\\slash",
        "trailing\\",
        "ünï",
        "[x]",
    ],
)
def test_paths_are_taken_as_typed(value):
    assert compose_config("extract", [f"slides={value}", "out=y", "encoder=uni"]).slides == value


def test_null_conditioning_is_a_word():
    config = compose_config("extract", ["slides=x", "out=y", "encoder=zoomldm-brca", "encoder.conditioning=null"])
    assert config.encoder.conditioning == "null"


BASE = ["extract", "slides={cohort}", "out={out}", "encoder=color-stats"]
TINY = [*BASE[:3], "encoder=zoomldm-tiny"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["extrct"], "Did you mean extract"),
        (["extract", "out={out}", "encoder=color-stats"], "slides= is missing"),
        (["extract", "slides={cohort}", "out={out}"], "encoder= is missing"),
        (["extract", "slides={cohort}", "out={out}", "encoder=zoomldm-tinny"], "Did you mean encoder=zoomldm-tiny"),
        ([*BASE, "magnificatons=20x"], "Did you mean magnifications"),
        ([*BASE, "timestep=3"], "Keys are slides"),
        ([*TINY, "encoder.timestp=3"], "encoder.timestep"),
        ([*TINY, "timestep=3"], "encoder.timestep"),
        ([*BASE, "workers=two"], "workers"),
        ([*BASE, "workers=0"], "workers=0; expected at least 1"),
        ([*BASE, "magnifications=[40x]"], "no magnification '40x'"),
        ([*BASE, "device=abacus"], "no device"),
        ([*BASE, "word"], "'word' is not key=value"),
        (["extract", "slides={cohort}/absent", "out={out}", "encoder=color-stats"], "absent"),
        (["extract", "slides={empty}", "out={out}", "encoder=color-stats"], "no slide"),
        (["extract", "slides={cohort}", "out={cohort}/bags", "encoder=color-stats"], "inside the slide folder"),
        ([*TINY, "encoder.weights={empty}"], "not a ZoomLDM"),
        ([*TINY, "encoder.taps=midd"], "Did you mean 'mid'"),
        (["inspect"], "bag= is missing"),
        (["inspect", "{empty}"], "holds no .h5 file"),
        (["inspect", "{empty}/absent.h5"], "no such file"),
        (["inspect", "{text}"], "bag"),
        (["convert", "{empty}", "to=clam", "out={out}"], "no bag"),
        (["convert", "{text}", "to=claim", "out={out}"], "layout"),
        (["convert-checkpoint", "weights={text}", "out={out}"], "config.yaml"),
        (["convert-checkpoint", "weights={text}", "out={cohort}"], "exists already"),
        (["encoders", "x=1"], "no key 'x'"),
        (["extract", "--cfg"], "--cfg job"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_an_exit_code(words, message, cohort, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.h5").write_text("not HDF5")
    places = {"cohort": cohort, "out": tmp_path / "out", "empty": tmp_path / "empty", "text": tmp_path / "text.h5"}
    before = sorted(cohort.iterdir())
    assert main([word.format(**places) for word in words]) in (1, 2)
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert message in lines[0]
    assert lines[0].startswith("zoomfeat: ")
    assert sorted(cohort.iterdir()) == before


@pytest.fixture
def bags(cohort, tmp_path, capsys):
    """A folder of bags that the command line made."""
    words = ["extract", f"slides={cohort}", f"out={tmp_path / 'bags'}", "encoder=color-stats", "preview=false"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "3 slides: 3 done, 0 existed, 0 failed" in text
    return tmp_path / "bags"


def test_extract_leaves_a_report_and_its_configuration(bags, cohort, capsys):
    with (bags / "report.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["done"] * 3
    assert all(int(row["patches_20x"]) >= int(row["patches_5x"]) > 0 for row in rows)
    config = yaml.safe_load((bags / "config.yaml").read_text())
    assert config["encoder"] == {"name": "color-stats"}
    assert config["slides"] == str(cohort)
    assert main(["extract", f"slides={cohort}", f"out={bags}", "encoder=color-stats", "preview=false"]) == 0
    assert "0 done, 3 existed" in capsys.readouterr().out


def test_extract_ends_with_an_exit_code_when_a_slide_failed(tmp_path, cohort, capsys):
    manifest = tmp_path / "slides.csv"
    good = cohort / "slide-0.5.tiff"
    manifest.write_text(f"path,slide_id,mpp\n{good},first,\n{good},second,0.25\n{tmp_path}/gone.svs,third,\n")
    assert main(["extract", f"slides={manifest}", f"out={tmp_path / 'bags'}", "encoder=color-stats"]) == 1
    text = capsys.readouterr().out
    assert "2 done, 0 existed, 1 failed" in text
    assert "gone.svs" in text
    assert Bag.open(tmp_path / "bags" / "second.h5").metadata.mpp_source == "manifest"
    with (tmp_path / "bags" / "report.csv").open(newline="") as file:
        third = list(csv.DictReader(file))[2]
    assert (third["status"], third["stage"]) == ("failed", "open")
    assert third["error"]
    assert third["cure"]


def test_inspect(bags, capsys):
    assert main(["inspect", str(bags / "slide-0.5.h5")]) == 0
    text = capsys.readouterr().out
    assert "color-stats" in text
    assert main(["inspect", str(bags)]) == 0
    assert capsys.readouterr().out.count("provenance") == 3


@pytest.mark.parametrize("layout", ["trident", "clam", "torchmil", "stamp", "fused"])
def test_convert(bags, layout, capsys, tmp_path):
    assert main(["convert", str(bags), f"to={layout}", f"out={tmp_path / layout}"]) == 0
    assert "3 slides: 3 converted, 0 failed" in capsys.readouterr().out
    if layout == "fused":
        return
    back = ["convert", str(tmp_path / layout), f"layout={layout}", f"out={tmp_path / 'back'}"]
    assert main(back + (["mpp=0.5"] if layout == "stamp" else [])) in (0, 1)
    again, original = Bag.open(tmp_path / "back" / "slide-0.5.h5"), Bag.open(bags / "slide-0.5.h5")
    np.testing.assert_array_equal(again.coords, original.coords)
    np.testing.assert_allclose(again.fused(), original.fused(), atol=1e-3 if layout == "stamp" else 0)


def test_encoders(capsys):
    assert main(["encoders"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in schema.ENCODERS)
    assert "to try the toolkit, not for science" in " ".join(text.split())


@pytest.mark.shared_data
def test_convert_checkpoint_then_extract_with_it(shared, tmp_path, cohort, capsys):
    weights = shared / "zoomldm-golden" / "weights.ckpt"
    assert main(["convert-checkpoint", f"weights={weights}", f"out={tmp_path / 'converted'}"]) == 0
    assert ZoomLDM.load(tmp_path / "converted").weights_hash() == ZoomLDM.load(weights).weights_hash()
    words = [f"slides={cohort / 'slide-0.5.tiff'}", "encoder=zoomldm-brca", "magnifications=5x"]
    for name, path in (("a", weights), ("b", tmp_path / "converted")):
        assert main(["extract", *words, f"out={tmp_path / name}", f"encoder.weights={path}"]) == 0
    a, b = (Bag.open(tmp_path / name / "slide-0.5.h5") for name in "ab")
    np.testing.assert_array_equal(a.features, b.features)
    assert a.metadata.weights_hash == b.metadata.weights_hash
    capsys.readouterr()
    assert main(["convert-checkpoint", f"weights={weights}", f"out={tmp_path / 'converted'}"]) == 2


def test_descriptions_survive_missing_values():
    assert "slides: ???" in describe_config("extract", ["encoder=uni"])
