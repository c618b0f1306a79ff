"""What every layout is made of, and what the layouts share."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoomfeat.bags.bag import Bag
from zoomfeat.bags.metadata import UNKNOWN, BagMetadata
from zoomfeat.bags.scales import AnyScale, ScaleFeatures, find_parents, with_features
from zoomfeat.errors import BagInvalidError, ConfigurationError, MagnificationError
from zoomfeat.magnification import BRCA, Ladder, resolution


@dataclass(frozen=True)
class Hints:
    """What the user knows about a source and its files do not say.

    Attributes:
        mpp: um/px of level 0 in x and y.
        magnification: of the patches, for sources with a single one.
        encoder: of the features; also chooses among TRIDENT's ``features_*`` folders.
        ladder: whose magnifications the source names.
    """

    mpp: tuple[float, float] | None = None
    magnification: str | None = None
    encoder: str | None = None
    ladder: Ladder = BRCA


@dataclass(frozen=True)
class Foreign:
    """One magnification of one slide as another tool stored it, in this project's terms.

    Attributes:
        scale: the patches and their features.
        encoder: as the files name it.
        level0_size: width and height of level 0 in px; None where the files do not say.
        mpp_level0: um/px of level 0 in x and y; None where the files do not say.
    """

    scale: ScaleFeatures
    encoder: str = UNKNOWN
    level0_size: tuple[int, int] | None = None
    mpp_level0: tuple[float, float] | None = None


@dataclass(frozen=True)
class Layout:
    """One way to lay bags out in files.

    Attributes:
        name: as users write it.
        write: ``(bag, root, features) -> paths`` writes one bag below a folder that exists.
        files: ``(source, hints) -> [(slide, file)]``, one row a slide and magnification; empty where the
            source is of another layout. None for a layout that is written only.
        read: ``(slide, files, hints) -> bag``.
    """

    name: str
    write: Callable[[Bag, Path, str], list[Path]]
    files: Callable[[Path, Hints], list[tuple[str, Path]]] | None = None
    read: Callable[[str, list[Path], Hints], Bag] | None = None


@dataclass(frozen=True)
class Matrix:
    """What a layout with one feature matrix a file stores of a bag.

    Attributes:
        label: ``"20x"`` for one scale, ``"20x+5x"`` for the fused features.
        scale: its patches; those of the finest scale for the fused features.
    """

    label: str
    scale: AnyScale


def select(bag: Bag, features: str) -> Iterator[Matrix]:
    """The matrices of a bag that a user asks for, one at a time.

    Args:
        bag: any bag.
        features: ``"all"`` for one matrix a magnification, ``"finest"``, ``"fused"``, or a magnification.

    Raises:
        MagnificationError: the bag does not hold that magnification.
    """
    if features == "all":
        yield from (Matrix(scale.magnification, scale) for scale in bag.scales)
    elif features == "fused":
        yield Matrix("+".join(bag.magnifications), with_features(bag.scales[0], bag.fused()))
    else:
        scale = bag.scales[0] if features == "finest" else bag.scale(features)
        yield Matrix(scale.magnification, scale)


def reads_scales(read_scale: Callable[[Path, Hints], Foreign]) -> Callable[[str, list[Path], Hints], Bag]:
    """The ``read`` of a layout that keeps each magnification of a slide in a file of its own.

    Args:
        read_scale: reads one such file.
    """

    def read(slide: str, files: list[Path], hints: Hints) -> Bag:
        return assemble(slide, [read_scale(file, hints) for file in files], hints, files[0])

    return read


def assemble(slide: str, found: Iterable[Foreign], hints: Hints, path: Path) -> Bag:
    """A bag of the magnifications that a foreign source holds of one slide; parents follow from coordinates.

    Args:
        slide: its name.
        found: the magnifications, in any order.
        hints: what the user knows; wins over what the files leave open.
        path: a file of the source, for messages.

    Raises:
        BagInvalidError: the magnifications contradict each other, or a patch has no parent.
    """
    parts = sorted(found, key=lambda part: part.scale.mpp)
    scales = tuple(part.scale for part in parts)
    sizes = [part.level0_size for part in parts if part.level0_size]
    stored = [part.mpp_level0 for part in parts if part.mpp_level0]
    for name, values in (("level-0 sizes", sizes), ("um/px", stored)):
        if len(set(values)) > 1:
            raise BagInvalidError(
                f"the magnifications of {slide} have different {name}: {sorted(set(values))}",
                cure="Convert each magnification by itself",
                path=path,
            )
    width, height = sizes[0] if sizes else (None, None)
    mpp, source = (stored[0], "converted") if stored else (hints.mpp, "user" if hints.mpp else UNKNOWN)
    for scale in scales:
        scale.check(path)
    return Bag(
        scales,
        {scale.magnification: find_parents(scales[0], scale, path) for scale in scales[1:]},
        metadata=BagMetadata(
            slide_id=slide,
            encoder=hints.encoder or parts[0].encoder,
            mpp_level0=mpp,
            mpp_source=source,
            level0_width=width,
            level0_height=height,
        ),
    )


def apply_mpp(bag: Bag, hints: Hints) -> Bag:
    """The bag with the user's um/px of level 0, where it has none of its own.

    Raises:
        ConfigurationError: it has another.
    """
    known = bag.metadata.mpp_level0
    if hints.mpp is None or (known is not None and np.allclose(known, hints.mpp, rtol=1e-3)):
        return bag
    if known is not None:
        raise ConfigurationError(
            f"mpp={hints.mpp} contradicts the {known} um/px that the source states for {bag.metadata.slide_id}",
            cure="Leave mpp out, or extract the slide again with it",
            path=bag.path,
        )
    return replace(bag, metadata=replace(bag.metadata, mpp_level0=hints.mpp, mpp_source="user"))


def need_mpp(metadata: BagMetadata, layout: str) -> tuple[float, float]:
    """um/px of level 0 of a bag.

    Raises:
        ConfigurationError: the bag does not know it.
    """
    if metadata.mpp_level0 is None:
        raise ConfigurationError(
            f"the um/px of {metadata.slide_id} is unknown and the {layout} layout needs it",
            cure="Give it with mpp=",
        )
    return metadata.mpp_level0


def folder_magnification(folder: Path, hints: Hints) -> str:
    """The magnification of the files in a folder: the user's, else the folder's name (``20x``, ``20x+5x``).

    Raises:
        ConfigurationError: neither says it.
    """
    name = hints.magnification or folder.resolve().name.split("+")[0]
    if not re.fullmatch(r"\d+(\.\d+)?x", name):
        raise ConfigurationError(
            f"neither the files nor the folder's name {folder.name!r} say the magnification",
            cure="Give it with magnification=, for example magnification=20x",
            path=folder,
        )
    return name


def magnification_mpp(magnification: str, ladder: Ladder) -> float:
    """um/px of a magnification: 20x is 0.5 in histology, where 40x and 15x, which no ladder has, mean a size too.

    Raises:
        MagnificationError: a name that another ladder does not have.
    """
    if ladder != BRCA:
        return ladder[magnification].mpp
    return 10 / float(magnification.removesuffix("x"))


def nearest_magnification(mpp: float, ladder: Ladder) -> str:
    """The name of a um/px: that of the ladder's step within a hundredth of it; in histology else one of its own.

    Raises:
        MagnificationError: another ladder has no such step.
    """
    for step in ladder.steps:
        if abs(mpp / step.mpp - 1) < 0.01:
            return step.name
    if ladder != BRCA:
        raise MagnificationError(
            f"pixels of {resolution(mpp)}, which no magnification of the {ladder.name} ladder has",
            cure="Name the images' own domain with domain=",
        )
    return f"{10 / mpp:.3g}x"


def below(source: Path, pattern: str) -> list[Path]:
    """Files of a source that may be the folder of one magnification or hold several of them.

    Folders of fused features (``20x+5x``) are derived from the others and read only when named themselves.
    """
    direct = sorted(source.glob(pattern))
    nested = (path for path in sorted(source.glob(f"*/{pattern}")) if "+" not in path.relative_to(source).parts[0])
    return direct or [path for path in nested if not path.name.startswith(".")]


def need_attributes(attributes: Mapping[str, Any], names: Iterable[str], path: Path, layout: str) -> list[Any]:
    """The values of attributes that a layout must have.

    Raises:
        BagInvalidError: one is missing.
    """
    missing = [name for name in names if name not in attributes]
    if missing:
        raise BagInvalidError(
            f"no attribute {', '.join(missing)}, expected the {layout} layout",
            cure="Name the layout with layout=, or write the file again with the tool it comes from",
            path=path,
        )
    return [attributes[name] for name in names]


def as_float32(features: Any) -> NDArray[np.float32]:
    """An array of any real type as float32, contiguous."""
    return np.ascontiguousarray(features, dtype=np.float32)
