"""``zoomfeat <command> key=value ...``: the command line. Commands are imported only when they run."""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from zoomfeat import __version__
from zoomfeat.conf import schema
from zoomfeat.errors import ConfigurationError, ZoomfeatError


@dataclass(frozen=True)
class Command:
    """One command of the command line.

    Attributes:
        module: where its ``run(config) -> int`` lives (the exit code is returned); named and not imported, so that
            commands of the packages above this one are no imports upwards.
        example: one line that works.
        positional: the key that a word without ``=`` stands for.
        several: whether several such words are the list that the key holds.
        extra: the optional dependencies that it needs.
    """

    module: str
    example: str
    positional: str | None = None
    several: bool = False
    extra: str | None = None


COMMANDS = {
    "extract": Command(
        "zoomfeat.commands.extract",
        "zoomfeat extract slides=slides/ out=bags/ encoder=zoomldm-brca magnifications=[20x,5x]",
    ),
    "inspect": Command("zoomfeat.commands.inspect", "zoomfeat inspect bags/slide.h5", positional="bag"),
    "status": Command("zoomfeat.commands.status", "zoomfeat status bags/", positional="out"),
    "verify": Command("zoomfeat.commands.verify", "zoomfeat verify bags/", positional="bags"),
    "convert": Command("zoomfeat.commands.convert", "zoomfeat convert bags/ to=clam out=clam/", positional="source"),
    "convert-checkpoint": Command(
        "zoomfeat.commands.convert_checkpoint", "zoomfeat convert-checkpoint weights=weights.ckpt out=zoomldm-brca/"
    ),
    "encoders": Command("zoomfeat.commands.encoders", "zoomfeat encoders"),
    "fetch": Command("zoomfeat.commands.fetch", "zoomfeat fetch uni", positional="model"),
    "demo": Command("benchmarks.commands.demo", "zoomfeat demo"),
    "prepare": Command(
        "generation.commands.prepare",
        "zoomfeat prepare slides=slides/ out=training/ ssl_encoder=uni first_stage=vq-f4.ckpt",
        extra="training",
    ),
    "train-first-stage": Command(
        "generation.commands.train_first_stage",
        "zoomfeat train-first-stage data=training/ out=first-stage/ size=tiny",
        extra="training",
    ),
    "train-ldm": Command(
        "generation.commands.train_ldm",
        "zoomfeat train-ldm data=training/ out=run/ first_stage=vq-f4.ckpt",
        extra="training",
    ),
    "train-cdm": Command(
        "generation.commands.train_cdm",
        "zoomfeat train-cdm data=training/ model=zoomldm-brca/ out=cdm/",
        extra="training",
    ),
    "distill": Command(
        "generation.commands.distill",
        "zoomfeat distill data=training/ out=small/ encoder=zoomldm-brca mode=encoder magnifications=[20x,5x]",
        extra="training",
    ),
    "generate": Command(
        "generation.commands.generate", "zoomfeat generate magnification=5x out=samples/ slide=slide.svs x=10240 y=8192"
    ),
    "generate-large": Command(
        "generation.commands.generate_large",
        "zoomfeat generate-large guide=1.25x out=large/ slide=slide.svs x=10240 y=8192",
    ),
    "superres": Command("generation.commands.superres", "zoomfeat superres image=region.png scale=4 out=fine/"),
    "crossval": Command(
        "mil.commands.crossval",
        "zoomfeat crossval bags=bags/ labels=labels.csv label=subtype out=run/ seeds=[0,1,2]",
        extra="mil",
    ),
    "compare": Command(
        "mil.commands.compare", "zoomfeat compare baseline/ run/ other/", positional="runs", several=True, extra="mil"
    ),
    "benchmark": Command(
        "benchmarks.commands.benchmark",
        "zoomfeat benchmark task=phantom encoders=[zoomldm-tiny,color-stats] heads=[mean,abmil]",
        extra="benchmarks",
    ),
    "predict": Command(
        "mil.commands.predict", "zoomfeat predict model=run/ bags=bags/ out=predictions.csv", extra="mil"
    ),
    "explain": Command(
        "mil.commands.explain", "zoomfeat explain model=run/ bags=bags/ slides=slides/ out=maps/", extra="mil"
    ),
    "leaderboard": Command(
        "benchmarks.commands.leaderboard",
        "zoomfeat leaderboard results/ out=site/",
        positional="results",
        extra="benchmarks",
    ),
    "submit-check": Command(
        "benchmarks.commands.submit_check",
        "zoomfeat submit-check record.json",
        positional="files",
        several=True,
        extra="benchmarks",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code: 0 done, 1 something failed, 2 wrong usage."""
    # Threads that spin while they wait for each other halt a machine that also does other work (measured on two
    # shared cores: 0.5 patches/s spinning, 10 sleeping). It counts from when PyTorch is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        print(f"zoomfeat {__version__}")
        return 0
    try:
        return _run(words[0], words[1:])
    except ConfigurationError as error:
        print(f"zoomfeat: {error}", file=sys.stderr)
        return 2
    except ZoomfeatError as error:
        print(f"zoomfeat: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "zoomfeat: interrupted; what is finished is kept, and the same command goes on from there.", file=sys.stderr
        )
        return 130


def _run(name: str, words: list[str]) -> int:
    if name not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise ConfigurationError(f"no command {name!r}", cure=f"{hint}Commands are {', '.join(COMMANDS)}")
    command = COMMANDS[name]
    if "-h" in words or "--help" in words:
        print(_help(name))
        return 0
    from zoomfeat.conf.compose import compose_config, describe_config

    if command.positional:
        words = _named(words, command.positional, command.several)
    if "--cfg" in words:
        at = words.index("--cfg")
        if words[at + 1 : at + 2] != ["job"]:
            raise ConfigurationError("--cfg needs a word behind it", cure="Write --cfg job")
        print(describe_config(name, words[:at] + words[at + 2 :]))
        return 0
    config = compose_config(name, words)
    try:
        module = importlib.import_module(command.module)
    except ModuleNotFoundError as error:
        if command.extra is None:
            raise
        cure = f"Install it with: pip install 'zoomfeat[{command.extra}]'"
        raise ConfigurationError(f"{name} needs the package {error.name}", cure=cure) from error
    return module.run(config)


def _named(words: list[str], key: str, several: bool) -> list[str]:
    """Words without ``=`` as values of a key: one word each, or all of them as one list."""
    plain = [word for word in words if "=" not in word and not word.startswith("-")]
    if several and plain:
        quoted = ",".join("'" + word.replace("\\", "\\\\").replace("'", "\\'") + "'" for word in plain)
        return [word for word in words if word not in plain] + [f"{key}=[{quoted}]"]
    return [f"{key}={word}" if word in plain else word for word in words]


def _overview() -> str:
    lines = [
        "zoomfeat: whole-slide images in, multi-scale MIL bags with ZoomLDM features out.",
        "",
        "usage: zoomfeat COMMAND key=value ...",
        "",
    ]
    width = max(map(len, COMMANDS))
    lines += [f"  {name:<{width}}  {_summary(name)}" for name in COMMANDS]
    lines += [
        "",
        "  zoomfeat COMMAND --help            every key, its default and its meaning",
        "  zoomfeat COMMAND ... --cfg job     the configuration that would run, and stop",
        "",
        f"example: {COMMANDS['extract'].example}",
    ]
    return "\n".join(lines)


def _summary(name: str) -> str:
    return (schema.COMMAND_CONFIGS[name].__doc__ or "").splitlines()[0]


def _help(name: str) -> str:
    lines = [f"zoomfeat {name}: {_summary(name)}", "", f"example: {COMMANDS[name].example}"]
    config = schema.COMMAND_CONFIGS[name]
    if schema.explanations(config):
        lines += ["", "keys:", *_keys(config)]
    if "encoder" in schema.explanations(config):
        lines += ["", f"encoders: {', '.join(schema.ENCODERS)}"]
        lines += [
            "",
            "keys of encoder=zoomldm-brca, zoomldm-naip and zoomldm-tiny:",
            *_keys(schema.ZoomLDMConfig, "encoder."),
            f"other defaults of zoomldm-tiny: {', '.join(_tiny_defaults())}",
            "",
            "keys of encoder=zoomldm-student:",
            *_keys(schema.StudentConfig, "encoder."),
        ]
    if "engine" in schema.explanations(config):
        lines += [
            "",
            f"engines: {', '.join(schema.ENGINES)} (all but local need: pip install 'zoomfeat[dask]')",
            "",
            "keys of engine=dask:",
            *_keys(schema.DaskConfig, "engine."),
            "",
            f"keys of engine={', '.join(name for name, kind in schema.ENGINES.items() if kind == 'jobs')}:",
            *_keys(schema.JobsConfig, "engine."),
        ]
    return "\n".join(lines)


def _tiny_defaults() -> list[str]:
    common = schema.defaults(schema.ZoomLDMConfig)
    own = schema.defaults(schema.ZoomLDMTinyConfig)
    return [f"encoder.{key}={_shown(value)}" for key, value in own.items() if value != common[key]]


def _keys(config: type, prefix: str = "") -> list[str]:
    lines = []
    for key, default in schema.defaults(config).items():
        if prefix and key == "name":
            continue
        lines += [f"  {prefix}{key} ({_shown(default)})", f"      {schema.explanations(config)[key]}"]
    return lines


def _shown(default: Any) -> str:
    if default == schema.REQUIRED:
        return "required"
    if isinstance(default, list):
        return f"[{','.join(map(str, default))}]"
    if dataclasses.is_dataclass(default):
        return str(getattr(default, "name", ""))
    return "null" if default is None else str(default).lower() if isinstance(default, bool) else str(default)


if __name__ == "__main__":
    sys.exit(main())
