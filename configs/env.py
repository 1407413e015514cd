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
    }
)
"""Variable → the configuration key that it sets."""


def process_environment() -> Mapping[str, str]:
    """A copy of this process's variables."""
    return dict(os.environ)


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
