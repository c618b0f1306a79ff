"""Several encoders from one read of the slide: each bag is the one that its encoder alone makes."""

from __future__ import annotations

import csv
from collections import Counter

import pytest

from zoomfeat.bags import Bag, validate
from zoomfeat.cli import main
from zoomfeat.conf.compose import compose_config
from zoomfeat.configuration import check_config, chosen_encoders
from zoomfeat.encoders import PatchEncoder, load_encoder
from zoomfeat.encoders.color import ColorStats
from zoomfeat.errors import ConfigurationError
from zoomfeat.extraction import extract_bags, extract_slide
from zoomfeat.report import SlideReport
from zoomfeat.slides import Slide, slides

NAMES = ["color-stats", "zoomldm-tiny"]


def load(name: str, **options) -> PatchEncoder:
    return load_encoder(name, device="cpu", **options)


@pytest.fixture
def config(tmp_path):
    """A configuration of ``extract`` with several encoders, as the command line composes it."""

    def make(folder, *words: str, names=NAMES, out: str = "several"):
        (tmp_path / out).mkdir(exist_ok=True)
        words = (f"slides={folder}", f"out={tmp_path / out}", f"encoders={','.join(names)}", "preview=false", *words)
        return compose_config("extract", words)

    return make


def run(config, encoders) -> list[SlideReport]:
    check_config(config)
    return [report for entry in slides(config.slides) for report in extract_bags(entry, config, encoders)]


@pytest.fixture
def reads(monkeypatch) -> Counter:
    """How often every box of a slide was read."""
    counts: Counter = Counter()
    read = Slide.read

    def counted(self, x, y, width, height, sizes):
        counts[x, y, width, height, tuple(sizes)] += 1
        return read(self, x, y, width, height, sizes)

    monkeypatch.setattr(Slide, "read", counted)
    return counts


def check_each_bag_is_what_its_encoder_alone_makes(path, config, extract_config, reads, tmp_path):
    encoders = [load(name) for name in NAMES]
    reports = run(config(path), encoders)
    assert [(r.status, r.encoder) for r in reports] == [("done", name) for name in NAMES], [r.error for r in reports]
    together = Counter(reads)
    assert set(together.values()) == {1}
    for name, encoder in zip(NAMES, encoders, strict=True):
        reads.clear()
        alone = extract_config(path, "preview=false", out=f"alone-{name}", encoder=name)
        (entry,) = slides(path)
        (report,) = [extract_slide(entry, alone, encoder)]
        assert report.status == "done"
        assert reads == together  # all encoders together read what one reads
        bag = tmp_path / "several" / name / f"{entry.slide_id}.h5"
        validate(bag)
        assert bag.read_bytes() == (tmp_path / f"alone-{name}" / f"{entry.slide_id}.h5").read_bytes()
    assert sorted(p.name for p in (tmp_path / "several").iterdir()) == sorted([".claims", "logs", *NAMES])


def test_each_bag_is_what_its_encoder_alone_makes(cohort, config, extract_config, reads, tmp_path):
    path = cohort / "slide-0.2639.tiff"
    check_each_bag_is_what_its_encoder_alone_makes(path, config, extract_config, reads, tmp_path)


@pytest.mark.shared_data
def test_each_bag_of_a_real_slide_too(shared, config, extract_config, reads, tmp_path):
    path = shared / "slides" / "CMU-1-Small-Region.svs"
    check_each_bag_is_what_its_encoder_alone_makes(path, config, extract_config, reads, tmp_path)


def test_a_second_run_makes_only_what_is_missing(cohort, config, reads, tmp_path):
    names = ["color-stats", "efficientnet-lite0"]
    encoders = [load(name) for name in names]
    path = cohort / "slide-0.5.tiff"
    assert [r.status for r in run(config(path, names=names[:1]), encoders[:1])] == ["done"]
    first = tmp_path / "several" / "color-stats" / "slide-0.5.h5"
    before = first.stat().st_mtime_ns
    reports = run(config(path, names=names), encoders)
    assert [(r.encoder, r.status) for r in reports] == [("color-stats", "exists"), ("efficientnet-lite0", "done")]
    assert first.stat().st_mtime_ns == before
    assert reports[0].patches == reports[1].patches
    reads.clear()
    assert [r.status for r in run(config(path, names=names), encoders)] == ["exists", "exists"]
    assert not reads
    first.unlink()
    assert [r.status for r in run(config(path, names=names), encoders)] == ["done", "exists"]


def test_a_bag_of_another_configuration_fails_alone(cohort, config):
    path = cohort / "slide-0.5.tiff"
    names = ["color-stats", "efficientnet-lite0"]
    encoders = [load(name) for name in names]
    run(config(path, names=names[:1]), encoders[:1])
    bad, good = run(config(path, "min_tissue=0.25", names=names), encoders)
    assert (bad.status, bad.stage, good.status) == ("failed", "resume", "done")
    assert "min_tissue: 0.5 there, 0.25 now" in bad.error


def test_a_slide_that_does_not_open_is_a_row_for_each_encoder(config, tmp_path):
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "broken.svs").write_bytes(b"no slide")
    reports = run(config(tmp_path / "slides"), [load(name) for name in NAMES])
    assert [(r.encoder, r.status, r.stage) for r in reports] == [(name, "failed", "open") for name in NAMES]
    assert all(r.cure for r in reports)


def test_a_bag_that_cannot_be_written_leaves_the_others_whole(cohort, config, tmp_path):
    made = config(cohort / "slide-0.5.tiff", names=["color-stats", "efficientnet-lite0"])
    (tmp_path / "several" / "color-stats").write_text("a file where the folder goes")
    bad, good = run(made, [load("color-stats"), load("efficientnet-lite0")])
    assert (bad.encoder, bad.status, bad.stage) == ("color-stats", "failed", "write")
    assert good.status == "done"
    validate(tmp_path / "several" / "efficientnet-lite0" / "slide-0.5.h5")


def test_an_encoder_that_fails_is_reported_with_its_traceback(cohort, config, monkeypatch):
    def explode(*arguments):
        raise RuntimeError("something new")

    made = config(cohort / "slide-0.5.tiff", names=["color-stats", "efficientnet-lite0"])
    monkeypatch.setattr(ColorStats, "embed", explode)
    reports = run(made, [load("color-stats"), load("efficientnet-lite0")])
    assert [(r.status, r.stage) for r in reports] == [("failed", "encode")] * 2
    assert all("something new" in r.details for r in reports)


def test_progress_counts_every_patch_once_an_encoder(cohort, config):
    seen = []
    (entry,) = slides(cohort / "slide-0.5.tiff")
    encoders = [load("color-stats"), load("efficientnet-lite0")]
    made = config(entry.path, "batch_size=5", names=["color-stats", "efficientnet-lite0"])
    report = extract_bags(entry, made, encoders, lambda done, total: seen.append((done, total)))[0]
    total = 2 * sum(report.patches.values())
    assert seen[0] == (0, total)
    assert seen[-1] == (total, total)
    assert seen == sorted(seen)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["encoder=color-stats", "encoders=color-stats,uni"], "both given"),
        ([], "encoder= is missing"),
        (["encoders=[]"], "encoder= is missing"),
        (["encoders=uni,uni"], "asked for twice"),
        (["encoders=uni", "encoder_options.phikon.weights=x"], "encoder_options of phikon, not among"),
        (["encoder=uni", "encoder_options.uni.weights=x"], "encoder_options of uni, not among"),
        (["encoders=color-stats,fikon"], "Did you mean 'phikon'"),
        (["encoders=zoomldm-tiny", "encoder_options.zoomldm-tiny.timestp=3"], "Did you mean 'timestep'"),
        (["encoders=uni", "encoder_options={uni:{weights:x}}"], "set key by key"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_loaded(words, message, cohort, tmp_path):
    def check() -> None:
        config = compose_config("extract", [f"slides={cohort}", f"out={tmp_path / 'out'}", *words])
        check_config(config)
        chosen_encoders(config)

    with pytest.raises(ConfigurationError, match=message):
        check()
    assert not (tmp_path / "out").exists()


def test_the_command_line(cohort, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["extract", f"slides={cohort / 'slide-0.5.tiff'}", f"out={out}", "encoders=[zoomldm-tiny,color-stats]"]
    words += ["encoder_options.zoomldm-tiny.timestep=300", "encoder_options.zoomldm-tiny.taps=mid"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "2 bags of 1 slide: 2 done, 0 existed, 0 failed" in text
    assert "NOTE zoomldm-tiny: " in text
    assert sorted(p.name for p in out.iterdir()) == sorted(
        [
            ".claims",
            "color-stats",
            "config.yaml",
            "logs",
            "previews",
            "report.csv",
            "run.json",
            "summary.md",
            "zoomldm-tiny",
        ]
    )
    assert [p.name for p in (out / "previews").iterdir()] == ["slide-0.5.png"]
    with (out / "report.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["slide_id"], row["encoder"], row["status"]) for row in rows] == [
        ("slide-0.5", "zoomldm-tiny", "done"),
        ("slide-0.5", "color-stats", "done"),
    ]
    settings = Bag.open(out / "zoomldm-tiny" / "slide-0.5.h5").metadata.encoder_settings
    assert (settings["timestep"], settings["taps"]) == (300, ["mid"])
    assert main([*words, "workers=1"]) == 0
    assert "0 done, 2 existed" in capsys.readouterr().out
    assert main([*words, "encoder=uni"]) == 2
    assert "both given" in capsys.readouterr().err
