"""Many requests of random fate: short here against the stand-in; ``tests.benchmarks.soak`` does it to a real server."""

import asyncio
from pathlib import Path

from tests.benchmarks.soak import plans, run
from tests.serving.process.service import serving
from tests.serving.process.test_service import metric


def test_no_client_hangs_and_nothing_is_left_after_requests_that_abort_vanish_and_finish(tmp_path: Path) -> None:
    with serving(tmp_path, "serving.workers=2", pace="0.002") as service:
        service.wait_for("/readyz", 200)
        ends = asyncio.run(run(service.url, plans(300, 5, 100, 40, 1000), concurrency=24))
        assert ends.total() == 300
        assert ends["error"] == 0
        assert ends["length"] > 100
        assert metric(service.client.get("/metrics").text, "radjax_num_running_reqs") == 0
