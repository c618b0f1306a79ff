"""What a prepared training set is on disk: a folder of Arrow files, one a slide and magnification, and an index.

Arrow rather than Parquet because training reads rows in random order: a row of a mapped file takes 0.2 ms, while of
Parquet a whole row group is decoded (2 ms with one row a group, 13 ms with eight; 5x patches, 1280 channels), and PNGs
and embeddings do not compress further. ``datasets.load_dataset`` and pyarrow open either.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from zoomfeat.errors import ZoomfeatError
from zoomfeat.files import replacing
from zoomfeat.magnification import BRCA, Ladder

INDEX = "index.json"
"""Name of the index in the folder of a set."""


@dataclass(frozen=True)
class Shard:
    """One file of rows.

    Attributes:
        file: path below the folder of the set, with forward slashes.
        magnification: name of the one magnification that it holds.
        rows: patches in it.
        bytes: its size, by which a truncated file is known.
    """

    file: str
    magnification: str
    rows: int
    bytes: int


@dataclass(frozen=True)
class SlideRecord:
    """A slide that is in the set as a whole.

    Attributes:
        slide: its name.
        mpp: um/px of level 0 along x and y.
        mpp_source: where that is from.
        dropped: magnification to patches left out for want of tissue.
        shards: its files.
    """

    slide: str
    mpp: tuple[float, float]
    mpp_source: str
    dropped: dict[str, int]
    shards: tuple[Shard, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Magnification to patches."""
        return {shard.magnification: shard.rows for shard in self.shards}

    def is_whole(self, folder: Path) -> bool:
        """Whether all its files are there, in the size they were written with."""
        paths = [(folder / shard.file, shard.bytes) for shard in self.shards]
        return all(path.is_file() and path.stat().st_size == size for path, size in paths)


@dataclass(frozen=True)
class Index:
    """What a set holds and what made it; ``index.json``.

    Attributes:
        configuration: all that decides the rows besides the slides, JSON-able: magnifications, tissue thresholds,
            encoder and first stage with the hashes of their weights.
        embedding_dim: channels of an embedding.
        latent_shape: channels, rows and columns of a latent; None where none are stored.
        note: what a user of the set must know, for example that the first stage is random.
        versions: package to version.
        slides: the finished slides, by name.
    """

    configuration: dict[str, Any]
    embedding_dim: int
    latent_shape: tuple[int, int, int] | None
    note: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    slides: dict[str, SlideRecord] = field(default_factory=dict)

    @property
    def ladder(self) -> Ladder:
        """The magnifications that its indices stand for; histology's where the set names no domain."""
        domain = self.configuration.get("domain")
        return BRCA if domain is None else Ladder.of(**domain["ladder"])

    @property
    def counts(self) -> dict[str, int]:
        """Magnification to patches, over all slides."""
        total: Counter[str] = Counter()
        for record in self.slides.values():
            total.update(record.counts)
        return {name: total[name] for name in self.configuration["magnifications"]}

    def with_slide(self, record: SlideRecord) -> Index:
        """The index with one more slide, or with another record of it."""
        return replace(self, slides={**self.slides, record.slide: record})

    def save(self, folder: Path) -> None:
        """Writes it, whole or not at all.

        Raises:
            ZoomfeatError: it cannot be written.
        """
        with replacing(folder / INDEX) as path:
            path.write_text(json.dumps({"counts": self.counts} | asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Index:
        """Reads the index of a set.

        Raises:
            ZoomfeatError: it is missing, or not an index.
        """
        path = folder / INDEX
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            stored.pop("counts")  # for human readers; it follows from the rest
            slides = {name: _record(entry) for name, entry in stored.pop("slides").items()}
            shape = stored.pop("latent_shape")
            return cls(**stored, latent_shape=shape and tuple(shape), slides=slides)
        except FileNotFoundError:
            raise ZoomfeatError("no such file", path=path, cure="Make the set with `zoomfeat prepare`") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            problem = f"not the index of a training set ({type(error).__name__}: {error})"
            raise ZoomfeatError(problem, path=path, cure="Prepare the set again, in a new folder") from error


def _record(entry: dict[str, Any]) -> SlideRecord:
    shards = tuple(Shard(**shard) for shard in entry["shards"])
    return SlideRecord(**{**entry, "mpp": tuple(entry["mpp"]), "shards": shards})
