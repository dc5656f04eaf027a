"""One sentence, with the nearest valid name, for every way that a configuration can be wrong."""

import difflib
import errno
import re
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
    SearchPathException,
)
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    GrammarParseError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from retro_lab.artifacts.disk import no_room
from retro_lab.config.catalog import FREE_GROUPS, all_settings, default_values, groups, option_settings, options
from retro_lab.config.strings import shell_override, takes_text
from retro_lab.errors import ConfigurationError, RetroLabError
from retro_lab.runs.naming import override_key

LAUNCHER = "hydra/launcher"
ALIKE, VERY_ALIKE = 0.6, 0.8
"""Likeness, of at most 1, from which a name passes for another mistyped: in its place, and without regard to place."""
CONFIGURABLE_CAUSES = (TypeError, ValueError, ImportError, AttributeError)
"""What a library raises when a free-form group asks it for something that it does not have."""
CONFIGURATION_ERRORS = (
    ConfigCompositionException, MissingConfigException, SearchPathException, OverrideParseException,
    InterpolationResolutionError, MissingMandatoryValue,
)  # fmt: skip
"""What Hydra and OmegaConf raise for mistakes of a user that show only once a run begins."""
LITERAL = r" ${ begins a reference to another setting; write \${ where it is part of a text."


@contextmanager
def explain_errors(overrides: Iterable[str]) -> Iterator[None]:
    """Turn any error of composing a configuration from overrides into one sentence.

    Raises:
        ConfigurationError: In place of any error of Hydra's or OmegaConf's.
    """
    try:
        yield
    except RetroLabError:
        raise
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigurationError(explain(error)) from error
    except ValueError as error:
        # Hydra's own for a group that is given null or a number; it does not say which group that is.
        pairs = ((override_key(text), text.partition("=")[2]) for text in overrides)
        wrong = [(group, option) for group, option in pairs if group in groups() and option not in options(group)]
        raise ConfigurationError(_no_option(*wrong[0]) if wrong else _sentence(error)) from error


def explain(error: Exception) -> str:
    """Say in one sentence what is wrong with a configuration and what was probably meant."""
    chain = list(_chain(error))
    if known := next((cause for cause in chain if isinstance(cause, RetroLabError)), None):
        return str(known)
    if isinstance(error, MissingConfigException):
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        return _no_option(group, option, error.options)
    if isinstance(error, OverrideParseException):
        return _bad_syntax(error)
    text = str(error)
    source = re.match(r"In '(?P<file>[^']+)'", text)
    file = source["file"] if source and source["file"] != "config" else ""
    where = f" in {file}" if file else ""
    causes = [cause for cause in chain if isinstance(cause, OmegaConfBaseException)]
    cause = next((cause for cause in causes if cause.full_key), causes[0] if causes else None)
    place = str(cause.full_key) if cause and cause.full_key else ""
    if match := re.search(r"Could not override '(?P<key>[^'@]+)", text):
        key = place if place.startswith(f"{match['key']}.") else match["key"]
        return no_setting(key, where, groups_only="defaults list" in text)
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and " not in " in str(cause):
        return no_setting(place, where)
    if match := re.match(r"Ambiguous value for argument '(?P<override>.+)'", text):
        key, _, value = match["override"].partition("=")
        one = shell_override(key, value) if takes_text(override_key(key)) else shlex.quote(f"{key}=[{value}]")
        return (
            f"{match['override']} has several values; add -m to run each, or, for a single one with commas, give {one}."
        )
    if cause:
        if choice := re.match(r"Invalid value '(?P<value>.*)', expected one of \[(?P<choices>.*)\]", str(cause)):
            return f"{place}={choice['value']}{where} is not one of {choice['choices']}."
        if entry := re.match(r"Invalid type assigned: dict is not a subclass of (?P<kind>\w+)", str(cause)):
            of_kind = (key for key, found in all_settings().items() if found.type == f"dict[str, {entry['kind']}]")
            if holder := next(of_kind, None):
                return f"{holder} takes its entries together: {_entries(holder, place)}."
        setting = all_settings().get(re.sub(r"\[.*", "", place)) if isinstance(cause, ValidationError) else None
        kind = f" takes {setting.type}" if setting else ""
        subject = place + where + kind if place else file
        literal = isinstance(cause, GrammarParseError | InterpolationResolutionError) and takes_text(place)
        return f"{subject}: {_sentence(cause)}{LITERAL if literal else ''}"
    return _sentence(error)


def explain_failure(error: Exception) -> str | None:
    """Say in one sentence what a user can fix in a run that failed; None for anything else, which is a bug."""
    if isinstance(error, RetroLabError):
        return str(error)
    if isinstance(error, CONFIGURATION_ERRORS):
        return explain(error)
    if isinstance(error, OSError):
        return _explain_disk(error)
    if not isinstance(error, InstantiationException):
        return None
    cause = error.__cause__
    if isinstance(cause, (RetroLabError, *CONFIGURATION_ERRORS)):
        return explain_failure(cause)
    # Lightning's own class for settings that do not fit is not imported here: that would take seconds.
    if cause is None or isinstance(cause, CONFIGURABLE_CAUSES) or type(cause).__name__ == "MisconfigurationException":
        key = re.search(r"full_key: (?P<key>\S+)", str(error))
        return f"{key['key']}: {_sentence(cause or error)}" if key else _sentence(cause or error)
    return None


def _explain_disk(error: OSError) -> str | None:
    """Say what is wrong with the place of a file; None for errors of the system that have other causes."""
    if trouble := no_room(error):
        return (
            f"{trouble}{f' at {error.filename}' if error.filename else ''}: make room, then run the same command again."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and error.filename:
        return (
            f"{error.filename} cannot be read or written ({error.strerror}); change its permissions, or choose another "
            "folder with paths.outputs or paths.artifacts."
        )
    return None


def no_setting(key: str, where: str = "", groups_only: bool = False) -> str:
    """Say that there is no such key, and which one is near it or which option would have it."""
    sentence = f"There is no setting {key}{where}"
    group, _, name = key.partition(".")
    settings = all_settings()
    if key in settings and name:
        fitting = [f"{group}={option}" for option in options(group) if key in option_settings(group, option)]
        return f"{sentence} with the {group} chosen; there is with {' or '.join(fitting)}."
    known = set(groups()) if groups_only else {*groups(), *settings, *default_values()}
    if near := nearest(key, known):
        return f"{sentence}; did you mean {near}?"
    parent = key.rpartition(".")[0]
    if "." in parent and (holder := settings.get(parent)) and holder.type.startswith("dict["):
        return f"{sentence}; add it with {_entries(parent, key.rpartition('.')[2])}."
    siblings = sorted(other for other in known if other.rpartition(".")[0] == parent and "._" not in other)
    free = f" +{key}=... adds it all the same." if group in FREE_GROUPS and name else ""
    return f"{sentence}.{free} There are {', '.join(siblings)}." if siblings else f"{sentence}.{free}"


def _entries(key: str, name: str) -> str:
    """Show how a setting with entries of the user's own gets one."""
    return shlex.quote(f"+{key}={{{name}: {{...}}}}")


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """Return the candidate that a name was probably meant to be."""
    names = sorted(candidates)
    best = max(names, key=lambda candidate: _likeness(name, candidate), default="")
    if _likeness(name, best) >= ALIKE:
        return best
    # The right key without its group, or under the wrong one; one that only some tasks have is meant the least often.
    names.sort(key=lambda candidate: not candidate.startswith("task."))
    tails = {candidate.rpartition(".")[2]: candidate for candidate in names}
    close = difflib.get_close_matches(name.rpartition(".")[2], tails, n=1, cutoff=VERY_ALIKE)
    return tails[close[0]] if close else None


def _likeness(name: str, candidate: str) -> float:
    """Compare two dotted names part by part: the least like parts count, for a long common parent says nothing."""
    parts, others = name.split("."), candidate.split(".")
    if len(parts) != len(others):
        return 0.0
    return min(difflib.SequenceMatcher(None, *pair).ratio() for pair in zip(parts, others, strict=True))


def _no_option(group: str, option: str, offered: Iterable[str] | None = None) -> str:
    if group == LAUNCHER:
        return f"There is no {group}={option}; `retro-lab submit` with the same overrides sends jobs to a cluster."
    known = sorted(offered or options(group))
    near = nearest(option, known)
    guess = f"; did you mean {near}?" if near else "."
    return f"There is no {group}={option}{guess} The options are {', '.join(known)}."


def _bad_syntax(error: OverrideParseException) -> str:
    if "=" not in error.override:
        fitting = [f"{group}={error.override}" for group in groups() if error.override in options(group)]
        guess = f"; did you mean {fitting[0]}?" if fitting else "."
        return f"{error.override} is not of the form KEY=VALUE{guess}"
    key, _, value = error.override.partition("=")
    setting = all_settings().get(override_key(key))
    if setting and not takes_text(setting.key):
        return f"{error.override} cannot be read; {setting.key} takes {setting.type}."
    return f"{error.override} cannot be read; a text with special characters is given as {shell_override(key, value)}."


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and all that caused it, each once: Hydra raises errors from one another in circles."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _sentence(error: BaseException) -> str:
    """Return the first line of a message; what follows are Hydra's and OmegaConf's notes to programmers."""
    lines = (line.strip().rstrip(".") for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__) + "."
