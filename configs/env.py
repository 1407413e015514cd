"""The only reader of the process environment, and the table of the variables that Radjax knows.

An unknown ``RADJAX_*`` variable is an error, since a misspelt one would be ignored in silence.
"""

import difflib
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from configs.errors import ConfigError

PREFIX: Final = "RADJAX_"

VARIABLES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "RADJAX_SOURCE": "model.source",
        "RADJAX_CACHE_DIR": "model.cache_dir",
        "RADJAX_HOST": "serving.host",
        "RADJAX_PORT": "serving.port",
        "RADJAX_API_KEY": "serving.api_key",
        "RADJAX_ADMIN_KEY": "serving.admin_key",
        "RADJAX_LOG_LEVEL": "observe.log_level",
        "RADJAX_ENABLE_SCHEDULER_PROFILING": "observe.step_records",
        "RADJAX_SCHEDULER_PROFILING_LOG": "observe.step_records_file",
        "RADJAX_SCHEDULER_PROFILING_CONSOLE": "observe.step_records_console",
        "RADJAX_RECORD_STEP_TIME": "observe.record_step_time",
        "RADJAX_PROFILER_DIR": "observe.profiler_dir",
    }
)
"""Variable → the configuration key that it sets."""


def process_environment() -> Mapping[str, str]:
    """A copy of this process's variables."""
    return dict(os.environ)


def engine_environment() -> Mapping[str, str]:
    """Variables for an engine process: this process's own, and glibc's malloc asking for huge pages.

    Reading weights and pages walks hundreds of megabytes a step; with pages of 4 KiB a step took 3 to 7 % longer (CPU).
    ``GLIBC_TUNABLES`` that are set already stay as they are; other C libraries ignore them.
    """
    return {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", **os.environ}


def settings(environ: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Configuration key → (variable, its text), for every ``RADJAX_*`` variable that is set.

    Raises:
      ConfigError: a variable with the prefix that is not in the table.
    """
    found: dict[str, tuple[str, str]] = {}
    for name in sorted(name for name in environ if name.startswith(PREFIX)):
        if name not in VARIABLES:
            close = difflib.get_close_matches(name, VARIABLES, n=1)
            raise ConfigError(
                "unknown environment variable",
                where=name,
                suggestion=f"did you mean {close[0]}?" if close else f"known are {', '.join(VARIABLES)}",
            )
        found[VARIABLES[name]] = (name, environ[name])
    return found
