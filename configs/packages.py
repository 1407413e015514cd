"""Whether the packages that will be imported are this project's own.

Another distribution may own a top-level name such as ``scheduler`` and stand before ours on the path.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Final

from configs.errors import ConfigError

ROOMS: Final = ("configs", "sharding", "model", "scheduler", "serving")
"""The top-level packages."""
ROOT: Final = Path(__file__).parents[1]


def check_packages(root: Path = ROOT) -> None:
    """Look where every room would be imported from; imports none of them.

    Raises:
      ConfigError: one of them lies outside of ``root``.
    """
    for room in ROOMS:
        spec = find_spec(room)
        found = None if spec is None else spec.origin
        if found is None or not Path(found).is_relative_to(root):
            raise ConfigError(
                f"the package {room!r} comes from {found or 'nowhere'} and not from {root}",
                suggestion="uninstall what hides it, or use the environment that 'make setup' makes",
            )
