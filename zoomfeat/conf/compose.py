"""A command line's ``key=value`` words to a validated configuration, with errors of one line."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from zoomfeat.conf import schema
from zoomfeat.errors import ConfigurationError


def _store() -> None:
    store = ConfigStore.instance()
    for command, config in schema.COMMAND_CONFIGS.items():
        store.store(name=f"_{command}", node=config)
    for name, config in schema.ENCODER_CONFIGS.items():
        store.store(group="encoder", name=f"_{name}", node=config)
    for name, config in schema.ENGINE_CONFIGS.items():
        store.store(group="engine", name=f"_{name}", node=config)


def compose_config(command: str, words: Sequence[str]) -> Any:
    """The typed configuration of a command.

    Args:
        command: for example ``"extract"``.
        words: ``key=value`` as typed; paths need no quotes beyond the shell's, lists no brackets.

    Returns:
        An instance of the command's class in :mod:`zoomfeat.conf.schema`.

    Raises:
        ConfigurationError: an unknown key (the nearest known one is named), a value of the wrong type, or a key
            without which the command cannot run.
    """
    config = _compose(command, words)
    for name in sorted(OmegaConf.missing_keys(config)):
        meaning = schema.explanations(schema.COMMAND_CONFIGS[command])[name]
        raise ConfigurationError(f"{name}= is missing ({meaning})", cure=f"See `zoomfeat {command} --help`")
    return OmegaConf.to_object(config)


def describe_config(command: str, words: Sequence[str]) -> str:
    """The composed configuration as YAML, each key with its explanation behind it."""
    config = _compose(command, words)
    lines = []
    for line, explained in _explained_lines(config, schema.COMMAND_CONFIGS[command]):
        lines.append(f"{line}  # {explained}" if explained else line)
    return "\n".join(lines)


def _explained_lines(config: DictConfig, kind: type, indent: str = "") -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    for name, meaning in schema.explanations(kind).items():
        if OmegaConf.is_missing(config, name):
            lines.append((f"{indent}{name}: ???", meaning))
        elif OmegaConf.get_type(config, name) is dict:
            lines.append((f"{indent}{name}: {json.dumps(OmegaConf.to_container(config[name]))}", meaning))
        elif isinstance(config[name], DictConfig):
            lines.append((f"{indent}{name}:", meaning))
            options = OmegaConf.get_type(config[name])
            assert options is not None  # composed from a class
            lines += _explained_lines(config[name], options, indent + "  ")
        elif isinstance(config[name], ListConfig):
            lines.append((f"{indent}{name}: [{', '.join(map(str, config[name]))}]", meaning))
        else:
            lines.append((indent + OmegaConf.to_yaml({name: config[name]}).rstrip(), meaning))
    return lines


def _compose(command: str, words: Sequence[str]) -> DictConfig:
    _store()
    try:
        with initialize_config_module("zoomfeat.conf", version_base="1.3"):
            return compose(command, overrides=[_quoted(word) for word in words])
    except (HydraException, OmegaConfBaseException) as error:
        raise _one_line(command, words, error) from error


# Keys whose value is a path or a name, taken as it is typed: Hydra's grammar would trip over "My slides (2)".
_VERBATIM = (
    "slides", "out", "domain", "bag", "source", "weights", "config", "encoder.weights", "data", "first_stage", "init",
    "ssl_weights", "init_unet", "model", "bags", "slide", "cdm", "image", "embeddings",
    "labels", "label", "slide_table", "split", "center_names", "slide_column", "patient_column", "fold_column",
    "results", "task", "encoder.distilled_encoder",
    "engine.address", "engine.queue", "engine.account", "engine.walltime", "engine.memory", "engine.job_folder",
)  # fmt: skip
_LISTS = (
    "magnifications", "encoder.taps", "classes", "scales", "seeds", "runs", "through", "files", "tasks", "encoders",
    "heads", "code", "quality",
)  # fmt: skip


def _quoted(word: str) -> str:
    name, equals, value = word.partition("=")
    if not equals:
        raise ConfigurationError(f"{word!r} is not key=value", cure="Write for example out=bags")
    if name == "encoder_options":
        raise ConfigurationError(
            "encoder_options= is set key by key", cure="Write for example encoder_options.uni.weights=uni.bin"
        )
    if name.startswith("encoder_options."):  # its keys are names of encoders, which Hydra does not know to expect
        options = _quoted(f"encoder.{name.split('.', 2)[-1]}={value}")
        return f"++{name}={options.partition('=')[2]}"
    plain = value in ("", "null") or re.fullmatch(r"[\w./~:@%+-]+", value, re.ASCII)
    mapping = name == "bags" and value.startswith("{")
    if name in _VERBATIM and not plain and not mapping:
        escaped = value.replace("\\", "\\\\").replace("'", "\\'") if "'" in value or value.endswith("\\") else value
        return f"{name}='{escaped}'"
    if word == "encoder.conditioning=null":
        return "encoder.conditioning='null'"  # the name of a choice, not YAML's nothing
    if name in _LISTS and not value.startswith("["):
        return f"{name}=[{value}]"
    return word


def _one_line(command: str, words: Sequence[str], error: Exception) -> ConfigurationError:
    """Hydra's and OmegaConf's messages run over several lines and name internals; users need the key and the cure."""
    text = str(error)
    help_hint = f"See `zoomfeat {command} --help`"
    if match := re.search(r"Could not find 'encoder/([^']*)'", text):
        return _unknown_encoder(match[1])
    if match := re.search(r"Could not find 'engine/([^']*)'", text):
        return ConfigurationError(f"no engine {match[1]!r}", cure=f"Use one of {', '.join(schema.ENGINES)}")
    if "You must specify 'encoder'" in text:
        return ConfigurationError(
            "encoder= is missing (the patch encoder)", cure=f"Use one of {', '.join(schema.ENCODERS)}"
        )
    if match := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(command, words, match[1])
    cause = error.__cause__ or error
    problem = str(cause).splitlines()[0]
    if isinstance(cause, OmegaConfBaseException) and cause.full_key:
        return ConfigurationError(f"{cause.full_key}: {problem}", cure=help_hint)
    if isinstance(error, ConfigCompositionException):
        problem = " ".join(text.split("\n")[:2])
    return ConfigurationError(problem.rstrip("."), cure=help_hint)


def _unknown_encoder(name: str) -> ConfigurationError:
    near = difflib.get_close_matches(name, schema.ENCODERS, n=1)
    hint = f"Did you mean encoder={near[0]}? " if near else ""
    return ConfigurationError(f"no encoder {name!r}", cure=f"{hint}Known are {', '.join(schema.ENCODERS)}")


def _unknown_key(command: str, words: Sequence[str], unknown: str) -> ConfigurationError:
    known = list(schema.explanations(schema.COMMAND_CONFIGS[command]))
    groups = (
        ("encoder", schema.ENCODERS, schema.ENCODER_CONFIGS),
        ("engine", schema.ENGINES, schema.ENGINE_CONFIGS),
    )
    for group, choices, configs in groups:
        chosen = next((word.partition("=")[2] for word in words if word.startswith(f"{group}=")), None)
        if group in known and chosen in choices:
            known += [
                f"{group}.{option}" for option in schema.explanations(configs[choices[chosen]]) if option != "name"
            ]
    group, dot, _ = unknown.partition(".")
    if dot and not any(k.startswith(f"{group}.") for k in known) and group in known:
        return ConfigurationError(f"no key {unknown!r} in {command}", cure=f"This {group} has no keys of its own")
    near = difflib.get_close_matches(unknown, known, n=1) or [k for k in known if k.endswith(f".{unknown}")]
    hint = f"Did you mean {near[0]}? See `zoomfeat {command} --help`" if near else f"Keys are {', '.join(known)}"
    return ConfigurationError(f"no key {unknown!r} in {command}", cure=hint)
