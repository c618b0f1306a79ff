from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoomfeat.errors import ZoomfeatError
from zoomfeat.magnification import parse
from zoomfeat.slides.grid import make_grid
from zoomfeat.slides.preview import draw_preview
from zoomfeat.slides.reader import Slide
from zoomfeat.slides.tissue import find_tissue


def test_preview(write_slide: Callable, tmp_path: Path) -> None:
    image = np.full((1500, 2000, 3), 243, np.uint8)
    image[300:1100, 500:1500] = (225, 150, 190)
    target = tmp_path / "previews" / "case.1.png"
    target.parent.mkdir()
    with Slide.open(write_slide([image])) as slide:
        tissue = find_tissue(slide)
        for names in (["20x", "5x"], ["20x"]):
            draw_preview(slide, tissue, make_grid(slide, tissue, parse(names)), target)
            sheet = np.asarray(Image.open(target))
            assert sheet.shape[1] >= 1600
            assert sheet.shape[0] > 1200
            for colour, drawn in (((0, 158, 115), True), ((0, 114, 178), True), ((230, 159, 0), len(names) == 2)):
                assert (sheet == colour).all(axis=2).any() == drawn
    assert [path.name for path in target.parent.iterdir()] == ["case.1.png"]


def test_nothing_is_left_behind_when_writing_fails(
    write_slide: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    with Slide.open(write_slide([np.full((600, 600, 3), (225, 150, 190), np.uint8)])) as slide:
        tissue = find_tissue(slide)
        grid = make_grid(slide, tissue, parse(["20x"]))
        monkeypatch.setattr(Image.Image, "save", full)
        (tmp_path / "out").mkdir()
        with pytest.raises(ZoomfeatError, match=r"a\.png: cannot be written"):
            draw_preview(slide, tissue, grid, tmp_path / "out" / "a.png")
    assert list((tmp_path / "out").iterdir()) == []
