import socket

import pytest

from configs.errors import ConfigError
from model.profile import listen


def test_a_port_that_is_taken_is_a_clear_error() -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=r"observe.profiler_port.*cannot be listened on"):
            listen(port)
