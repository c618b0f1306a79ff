"""What a run may be asked for, and what of that decides the content of a bag."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from zoomfeat.conf.schema import ENCODERS, EncoderConfig, ExtractConfig
from zoomfeat.domains import DEFAULT, load_domain
from zoomfeat.encoders import PatchEncoder, encoder_options
from zoomfeat.errors import ConfigurationError
from zoomfeat.slides import check_filters, filter_settings
from zoomfeat.slides.reader import DECODERS

ON_MISMATCH = ("refuse", "recompute", "keep")
"""What becomes of a bag that another configuration made."""


def check_config(config: ExtractConfig) -> None:
    """Refuses what cannot run before any slide is opened.

    Raises:
        ConfigurationError: no encoder or one twice, a number out of its range, an unknown domain or filter, or an
            output folder inside the slide folder.
        MagnificationError: an unknown or repeated magnification.
    """
    if config.workers < 1:
        raise ConfigurationError(f"workers={config.workers}; expected at least 1", cure="The default is 2")
    if config.batch_size < 1:
        raise ConfigurationError(f"batch_size={config.batch_size}; expected at least 1", cure="The default is 16")
    if not 0 <= config.min_tissue <= 1:
        raise ConfigurationError(f"min_tissue={config.min_tissue}; expected 0 to 1", cure="The default is 0.5")
    if config.decode not in DECODERS:
        raise ConfigurationError(
            f"decode={config.decode!r}; expected one of {', '.join(DECODERS)}", cure="The default is exact"
        )
    if config.dtype not in ("float32", "float16"):
        raise ConfigurationError(f"dtype={config.dtype!r}; expected float32 or float16", cure="The default is float32")
    if config.on_mismatch not in ON_MISMATCH:
        raise ConfigurationError(
            f"on_mismatch={config.on_mismatch!r}; expected one of {', '.join(ON_MISMATCH)}",
            cure="The default is refuse",
        )
    if config.slide_timeout is not None and config.slide_timeout <= 0:
        raise ConfigurationError(
            f"slide_timeout={config.slide_timeout}; expected seconds, above 0", cure="The default is null: none"
        )
    if config.encoder is None and not config.encoders:
        raise ConfigurationError(
            "encoder= is missing (the patch encoder), and so is encoders= (several)",
            cure=f"Use one of {', '.join(ENCODERS)}",
        )
    if config.encoder is not None and config.encoders:
        raise ConfigurationError(
            "encoder= and encoders= are both given",
            cure="Use encoder= for one, whose bags go to out, or encoders= for several, whose bags go to out/ENCODER/",
        )
    if len(set(config.encoders)) < len(config.encoders):
        raise ConfigurationError(f"an encoder is asked for twice in {config.encoders}", cure="Name each once")
    if unused := config.encoder_options.keys() - set(config.encoders):
        raise ConfigurationError(
            f"encoder_options of {', '.join(sorted(unused))}, not among encoders={config.encoders}",
            cure="The keys of one encoder are encoder.KEY",
        )
    load_domain(config.domain).steps(config.magnifications)
    check_filters(config.quality)
    slides, out = Path(config.slides).resolve(), Path(config.out).resolve()
    if slides.is_dir() and (out == slides or slides in out.parents):
        raise ConfigurationError(
            f"out={config.out} lies inside the slide folder {config.slides}",
            cure="Choose an out= elsewhere: results are kept apart from raw slides",
        )


def chosen_encoders(config: ExtractConfig) -> list[EncoderConfig]:
    """The encoders that ``encoder=`` or ``encoders=`` names, each with its options.

    Raises:
        ConfigurationError: an unknown encoder or option.
    """
    if config.encoder is not None:
        return [config.encoder]
    return [encoder_options(name, **config.encoder_options.get(name, {})) for name in config.encoders]


def bag_configuration(config: ExtractConfig, encoder: PatchEncoder) -> dict[str, Any]:
    """What decides the content of a bag besides the slide: no paths, no devices, no numbers of workers."""
    domain = load_domain(config.domain)
    configuration = {
        "encoder": {"name": encoder.name, "weights_hash": encoder.weights_hash, **encoder.settings},
        "magnifications": [str(m) for m in domain.steps(config.magnifications)],
        "mpp": config.mpp,
        "min_tissue": config.min_tissue,
        "dtype": config.dtype,
    }
    if domain != load_domain(DEFAULT):  # bags from before there were domains stay what they are
        configuration["domain"] = {
            "name": domain.name,
            "reader": domain.reader,
            "foreground": domain.foreground,
            "finest_mpp": domain.ladder.finest.mpp,
        }
    if config.decode == "dct":  # the other ways give the same pixels
        configuration["decode"] = "dct"
    if config.quality:
        configuration["quality"] = filter_settings(config.quality)
    return configuration


def configuration_hash(configuration: dict[str, Any]) -> str:
    """SHA-256 of a configuration, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest()


def bag_path(config: ExtractConfig, encoder: str, slide_id: str) -> Path:
    """Where a bag goes: into ``out``, or into a folder of its encoder there when several were asked for."""
    folder = Path(config.out) / encoder if config.encoders else Path(config.out)
    return folder / f"{slide_id}.h5"


def differences(stored: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> list[str]:
    """What differs between the configuration that made a bag and the one that is wanted, a line a key."""
    if stored.get("name") != wanted.get("name"):  # of the encoder: its other keys are then no news
        return [f"{prefix}name: {stored.get('name')} there, {wanted.get('name')} now"]
    found = []
    for key in sorted(stored.keys() | wanted.keys()):
        old, new = stored.get(key), wanted.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key}: {str(old)[:40]} there, {str(new)[:40]} now")
    return found
