"""Slides as scanners and software of all kinds leave them, small and drawn, for tests of what is odd or broken.

Each function writes one file and returns its path. Pixels are `draw_tissue`'s or given; nothing is a scan.
"""

from __future__ import annotations

import struct
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pydicom
import tifffile
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit, VLWholeSlideMicroscopyImageStorage, generate_uid

from zoomfeat.slides.synthetic import draw_tissue

TILE = 256
LABEL, MACRO = (10, 200, 30), (200, 10, 150)
"""Colours of the label and the macro image of `aperio`, which no output may hold."""


def tissue(side: int = 768, mpp: float = 0.5, seed: int = 0) -> np.ndarray:
    """``(side, side, 3)`` uint8 RGB: a piece of tissue on glass."""
    return _drawn(side, mpp, seed).copy()


@cache
def _drawn(side: int, mpp: float, seed: int) -> np.ndarray:
    return draw_tissue((side, side), mpp, seed)


def tiff(
    path: Path,
    levels: list[np.ndarray],
    mpp: tuple[float, float] | None = (0.5, 0.5),
    compression: str | None = "jpeg",
    tile: int | None = TILE,
    **options: Any,
) -> Path:
    """A TIFF of the levels given, tiled unless ``tile`` is None, with um/px in its resolution tags."""
    resolution = {} if mpp is None else {"resolution": (1e4 / mpp[0], 1e4 / mpp[1]), "resolutionunit": "CENTIMETER"}
    writer = {key: options.pop(key) for key in ("bigtiff",) if key in options}
    with tifffile.TiffWriter(path, **writer) as file:
        for number, level in enumerate(levels):
            file.write(
                level,
                tile=None if tile is None else (tile, tile),
                photometric=options.get("photometric", "rgb"),
                compression=compression,
                subfiletype=int(number > 0),
                metadata=None,
                **resolution,
                **{key: value for key, value in options.items() if key != "photometric"},
            )
    return path


def pyramid(image: np.ndarray, *downsamples: float) -> list[np.ndarray]:
    """An image and what is left of it at each downsample."""
    height, width = image.shape[:2]
    sizes = [(max(1, int(width / by)), max(1, int(height / by))) for by in downsamples]
    return [image, *(cv2.resize(image, size, interpolation=cv2.INTER_AREA) for size in sizes)]


def aperio(path: Path, image: np.ndarray, mpp: float | None = 0.5, *, jpeg2000: bool = False) -> Path:
    """An SVS with thumbnail, label and macro image; tiles are JPEG, or JPEG 2000 as Aperio writes it."""
    height, width = image.shape[:2]
    said = "" if mpp is None else f"|AppMag = 20|MPP = {mpp}"
    start = f"Aperio Image Library v0\nSYNTHETIC {width}x{height}"
    tiled: dict[str, Any] = {"tile": (TILE, TILE), "photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(path) as file:
        if jpeg2000:
            tiles = (imagecodecs.jpeg2k_encode(part, level=35, codecformat="j2k") for part in _tiles(image))
            file.write(
                tiles, shape=image.shape, dtype=np.uint8, compression=33005, description=f"{start}{said}", **tiled
            )
        else:
            file.write(image, compression="jpeg", description=f"{start}{said}", **tiled)
        flat: dict[str, Any] = {"photometric": "rgb", "compression": "jpeg", "metadata": None}
        file.write(cv2.resize(image, (96, 96)), description=f"{start} -> 96x96 - ", **flat)
        for name, colour, kind in (("label", LABEL, 1), ("macro", MACRO, 9)):
            picture = np.full((64, 128, 3), colour, np.uint8)
            file.write(picture, description=f"Aperio Image Library v0\n{name} 128x64", subfiletype=kind, **flat)
    return path


def dicom(path: Path, image: np.ndarray, mpp: tuple[float, float] = (0.5, 0.5), transfer: str = "jpeg") -> Path:
    """A VL Whole Slide Microscopy image of one level in one file (DICOM PS3.3, A.32.8), tiles row by row."""
    height, width = image.shape[:2]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = VLWholeSlideMicroscopyImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(path)])
    meta.TransferSyntaxUID = JPEGBaseline8Bit if transfer == "jpeg" else pydicom.uid.ExplicitVRLittleEndian
    slide = Dataset()
    slide.file_meta = meta
    slide.SOPClassUID, slide.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    slide.SeriesInstanceUID = generate_uid(entropy_srcs=["series", str(path)])
    slide.StudyInstanceUID = generate_uid(entropy_srcs=["study", str(path)])
    slide.FrameOfReferenceUID = generate_uid(entropy_srcs=["frame", str(path)])
    slide.Modality, slide.ImageType = "SM", ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    slide.PatientName = "SYNTHETIC"
    slide.Rows = slide.Columns = TILE
    slide.TotalPixelMatrixColumns, slide.TotalPixelMatrixRows = width, height
    slide.SamplesPerPixel, slide.PlanarConfiguration = 3, 0
    slide.PhotometricInterpretation = "RGB"
    slide.BitsAllocated = slide.BitsStored = 8
    slide.HighBit, slide.PixelRepresentation = 7, 0
    slide.DimensionOrganizationType = "TILED_FULL"
    slide.TotalPixelMatrixFocalPlanes = 1
    slide.NumberOfOpticalPaths = 1
    measures, shared = Dataset(), Dataset()
    measures.PixelSpacing = [mpp[1] / 1e3, mpp[0] / 1e3]
    measures.SliceThickness = 0.001
    shared.PixelMeasuresSequence = [measures]
    slide.SharedFunctionalGroupsSequence = [shared]
    path_of_light = Dataset()
    path_of_light.OpticalPathIdentifier = "0"
    slide.OpticalPathSequence = [path_of_light]
    parts = _tiles(image)
    slide.NumberOfFrames = len(parts)
    if transfer == "jpeg":
        frames = [bytes(imagecodecs.jpeg8_encode(part, level=90, colorspace=2, outcolorspace=2)) for part in parts]
        slide.PixelData = encapsulate(frames)
        slide["PixelData"].is_undefined_length = True
        slide.LossyImageCompression = "01"
    else:
        slide.PixelData = b"".join(part.tobytes() for part in parts)
    slide["PixelData"].VR = "OB"
    slide.save_as(path, enforce_file_format=True)
    return path


def plain(path: Path, image: np.ndarray) -> Path:
    """A PNG, JPEG, BMP or untiled TIFF, as the suffix says."""
    Image.fromarray(image).save(path)
    return path


def _tiles(image: np.ndarray) -> list[np.ndarray]:
    """Tiles row by row, the last ones filled up with their edges."""
    down, across = (-(-side // TILE) for side in image.shape[:2])
    padded = np.pad(
        image, ((0, down * TILE - image.shape[0]), (0, across * TILE - image.shape[1]), (0, 0)), mode="edge"
    )
    return [
        np.ascontiguousarray(padded[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE])
        for row in range(down)
        for column in range(across)
    ]


def mirax(folder: Path, image: np.ndarray, mpp: float = 0.5, missing: tuple[tuple[int, int], ...] = ()) -> Path:
    """An MRXS slide of one level without overlaps: ``Slidedat.ini``, ``Index.dat`` and JPEG tiles in ``slide/``.

    The layout is what openslide.org/formats/mirax documents. Cameras leave out what is no tissue: such tiles are no
    entries of the index, and transparent where they are read.

    Args:
        folder: where ``slide.mrxs`` and its folder go.
        image: sides are multiples of 256 px.
        mpp: its um/px.
        missing: columns and rows of tiles that are left out.
    """
    down, across = image.shape[0] // TILE, image.shape[1] // TILE
    data = folder / "slide"
    data.mkdir()
    identity = "SYNTHETIC-000000000000000000000000"
    ini = {
        "GENERAL": {
            "SLIDE_ID": identity, "IMAGENUMBER_X": across, "IMAGENUMBER_Y": down, "OBJECTIVE_MAGNIFICATION": 20,
            "CameraImageDivisionsPerSide": 1,
        },
        "HIERARCHICAL": {
            "HIER_COUNT": 1, "NONHIER_COUNT": 0, "INDEXFILE": "Index.dat", "HIER_0_NAME": "Slide zoom level",
            "HIER_0_COUNT": 1, "HIER_0_VAL_0_SECTION": "LAYER_0_LEVEL_0_SECTION",
        },
        "LAYER_0_LEVEL_0_SECTION": {
            "OVERLAP_X": 0, "OVERLAP_Y": 0, "MICROMETER_PER_PIXEL_X": mpp, "MICROMETER_PER_PIXEL_Y": mpp,
            "IMAGE_FORMAT": "JPEG", "IMAGE_FILL_COLOR_BGR": 16777215, "DIGITIZER_WIDTH": TILE,
            "DIGITIZER_HEIGHT": TILE, "IMAGE_CONCAT_FACTOR": 0,
        },
        "DATAFILE": {"FILE_COUNT": 1, "FILE_0": "Data0000.dat"},
    }  # fmt: skip
    lines = [line for name, keys in ini.items() for line in (f"[{name}]", *(f"{k} = {v}" for k, v in keys.items()))]
    (data / "Slidedat.ini").write_text("\n".join(lines) + "\n")
    stored, entries = bytearray(), []
    for number, part in enumerate(_tiles(image)):
        row, column = divmod(number, across)
        if (column, row) not in missing:
            jpeg = bytes(imagecodecs.jpeg8_encode(part, level=90))
            entries.append((number, len(stored), len(jpeg), 0))
            stored += jpeg
    (data / "Data0000.dat").write_bytes(stored)
    start = f"01.02{identity}".encode()
    # The two roots, the records of the one level, the head of its list of pages, the page.
    roots = len(start)
    record, head, page = roots + 8, roots + 12, roots + 20
    index = start + struct.pack("<ii", record, 0) + struct.pack("<i", head) + struct.pack("<ii", 0, page)
    index += struct.pack("<ii", len(entries), 0) + b"".join(struct.pack("<iiii", *entry) for entry in entries)
    (data / "Index.dat").write_bytes(index)
    (folder / "slide.mrxs").write_bytes(b"")
    return folder / "slide.mrxs"
