"""A domain is data: what a kind of gigapixel image needs to become bags and to be sampled.

`brca.yaml` and `naip.yaml` lie beside this file; a third is another such file, given by its path, and at most a reader.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from zoomfeat.errors import ConfigurationError, MagnificationError
from zoomfeat.magnification import Ladder, Magnification, parse

DEFAULT = "brca"
"""The domain of whatever does not name one."""


@dataclass(frozen=True)
class Domain:
    """One kind of image.

    Attributes:
        name: the file's, without its suffix.
        about: what it is, for people.
        ladder: its magnifications.
        reader: what opens its files: a name of `zoomfeat.slides.sources.READERS`.
        foreground: the rule for what is worth a patch: a name of `zoomfeat.slides.foreground.RULES`.
        embedding: the encoder whose embeddings of the finest patches condition its models.
        weights: of its released model, ``owner/repository/folder`` on the hub; empty where there is none.
        magnifications: names of those that an extraction makes where none are asked for.
    """

    name: str
    about: str
    ladder: Ladder
    reader: str
    foreground: str
    embedding: str
    weights: str
    magnifications: tuple[str, ...]

    @property
    def hub(self) -> tuple[str, str]:
        """Repository and folder of the released model.

        Raises:
            ConfigurationError: there is none.
        """
        if not self.weights:
            raise ConfigurationError(
                f"the domain {self.name} names no released weights", cure="Give weights of your own, by their path"
            )
        repository, _, folder = self.weights.rpartition("/")
        return repository, folder

    def steps(self, wanted: list[str] | tuple[str, ...] | None = None) -> tuple[Magnification, ...]:
        """The magnifications asked for, finest first; the domain's usual ones for None.

        Raises:
            MagnificationError: an unknown name, a repeated one, or none at all.
        """
        return parse(self.magnifications if wanted is None else wanted, self.ladder)


def domain_names() -> list[str]:
    """Names of the domains that ship, sorted."""
    entries = files("zoomfeat").joinpath("domains").iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml"))


def load_domain(domain: str | Path) -> Domain:
    """A domain by name, or from the YAML file at a path.

    Args:
        domain: one of `domain_names`, or a path that ends in ``.yaml`` or ``.yml``.

    Raises:
        ConfigurationError: no such name or file, or a file that is no domain; the key that is wrong is named.
    """
    return _load(str(domain))


@lru_cache
def _load(domain: str) -> Domain:
    path = Path(domain)
    packaged = path.suffix not in (".yaml", ".yml")
    if packaged and domain not in domain_names():
        raise ConfigurationError(
            f"no domain {domain!r}", cure=f"Use one of {', '.join(domain_names())}, or the path of a YAML file"
        )
    try:
        source = files("zoomfeat").joinpath("domains", f"{domain}.yaml") if packaged else path
        found = yaml.safe_load(source.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigurationError(
            f"not a readable domain ({reason})", cure="See docs/satellite.md", path=path
        ) from error
    try:
        return _checked(path.stem, found)
    except (ConfigurationError, MagnificationError) as error:
        raise ConfigurationError(error.problem, cure=error.cure, path=path) from error


def _checked(name: str, found: Any) -> Domain:
    """The domain that the content of a YAML file describes."""
    keys = [entry.name for entry in fields(Domain) if entry.name != "name"]
    if not isinstance(found, dict) or set(found) != set(keys):
        keys_found = ", ".join(map(str, found)) if isinstance(found, dict) else type(found).__name__
        raise ConfigurationError(f"a domain of {keys_found}", cure=f"Its keys are {', '.join(keys)}, all of them")
    for key in ("about", "reader", "foreground", "embedding", "weights"):
        if not isinstance(found[key], str):
            raise ConfigurationError(f"{key} is {found[key]!r}", cure="Write a text; weights may be empty, ''")
    if found["weights"] and not re.fullmatch(r"[^/]+/[^/]+/[^/]+", found["weights"]):
        raise ConfigurationError(f"weights is {found['weights']!r}", cure="Write owner/repository/folder, or ''")
    ladder = found["ladder"]
    if not isinstance(ladder, dict) or set(ladder) != {"names", "finest"} or not isinstance(ladder["names"], list):
        raise ConfigurationError(f"ladder is {ladder!r}", cure="Give names, a list, and finest, a size such as 1 m")
    if not isinstance(found["magnifications"], list):
        raise ConfigurationError(f"magnifications is {found['magnifications']!r}", cure="Give a list of names")
    made = Domain(
        name=name,
        **{key: found[key] for key in ("about", "reader", "foreground", "embedding", "weights")},
        ladder=Ladder.of(name, ladder["names"], ladder["finest"]),
        magnifications=tuple(found["magnifications"]),
    )
    made.steps()
    return made
