"""Slides as scanners and software of all kinds leave them, small and drawn: for tests of what is odd and what is broken.

Each function writes one file and returns its path. Pixels are `draw_tissue`'s or given; nothing is a scan.
"""

from __future__ import annotations

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
