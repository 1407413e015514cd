"""What starts several hosts is well formed, and its commands serve: here as processes of one machine."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
import yaml

from configs.env import VARIABLES, process_environment
from configs.load import load
from configs.resolve import refuse_unsupported
from configs.schema import EngineConfig
from tests.serving.process.service import ROOT, STAND_IN, WAIT_S, are_free, body, free_port, free_ports, write_model

DEPLOY = ROOT / "configs" / "deploy"
SCRIPTS = ("ssh.sh", "slurm.sh")
KEY = re.compile(r"--set\W+([a-z_]+\.[a-z_0-9]+)=")
SLURM_PORT, SLURM_JOBS = 20_000, 3000
STAND_INS = {
    "ssh": 'while [[ $1 == -* ]]; do shift; done; shift; exec bash -c "$*"',
    "scontrol": '[[ "$1 $2 $3" == "show hostnames two-nodes" ]] && echo 127.0.0.1 && echo localhost',
    "srun": """
        while [[ $1 == -* ]]; do shift; done
        for ((task = 0; task < SLURM_JOB_NUM_NODES; task++)); do SLURM_PROCID=$task "$@" & done
        trap 'kill -TERM $(jobs -p)' TERM
        wait; wait
        """,
    "radjax": f"""
        [[ $1 == serve ]] || exit 2
        file=$2; shift 2; settings=()
        for word; do [[ $word == --set ]] || settings+=("$word"); done
        cd {ROOT} && exec {sys.executable} -m tests.serving.process.service {STAND_IN} "$file" "${{settings[@]}}"
        """,
}


def kubernetes() -> dict[str, Any]:
    """The documents by kind."""
    return {document["kind"]: document for document in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())}


def templates() -> list[dict[str, Any]]:
    """Of the leader's pod and of a worker's."""
    group = kubernetes()["LeaderWorkerSet"]["spec"]["leaderWorkerTemplate"]
    return [group["leaderTemplate"], group["workerTemplate"]]


def container(template: dict[str, Any]) -> dict[str, Any]:
    [found] = template["spec"]["containers"]
    return found


def knows(key: str) -> bool:
    """Whether a launch file has this key."""
    sections = {field.name: field.type for field in msgspec.structs.fields(EngineConfig)}
    section, _, name = key.partition(".")
    return section in sections and name in {field.name for field in msgspec.structs.fields(sections[section])}


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_shell_reads_a_script_and_its_flags_are_there(script: str) -> None:
    assert os.access(DEPLOY / script, os.X_OK)
    assert subprocess.run(["bash", "-n", str(DEPLOY / script)], check=False).returncode == 0
    keys = KEY.findall((DEPLOY / script).read_text())
    assert {"distributed.hosts", "distributed.rank", "distributed.coordinator"} <= set(keys)
    assert all(map(knows, keys)), keys


def test_every_pod_is_given_what_a_launch_file_knows(tmp_path: Path) -> None:
    file = tmp_path / "model.yaml"
    file.write_text(kubernetes()["ConfigMap"]["data"]["model.yaml"])
    size = kubernetes()["LeaderWorkerSet"]["spec"]["leaderWorkerTemplate"]["size"]
    for rank, template in enumerate(templates()):
        words = arguments(template, rank, size, "radjax-0.radjax")
        assert words[:2] == ["radjax", "serve"]
        assert words[3::2] == ["--set"] * (len(words[3:]) // 2)
        config = load(file, words[4::2], {}).config
        refuse_unsupported(config)
        assert (config.distributed.hosts, config.distributed.rank) == (size, rank)
        gpus = int(container(template)["resources"]["limits"]["nvidia.com/gpu"])
        assert gpus * size == config.parallel.devices
        assert all(variable["name"] in VARIABLES for variable in container(template).get("env", []))
        # otherwise Kubernetes sets RADJAX_PORT for the Service, and that is refused
        assert template["spec"]["enableServiceLinks"] is False
        assert template["spec"]["terminationGracePeriodSeconds"] > config.serving.drain_timeout_s
        mounted = {mount["name"] for mount in container(template)["volumeMounts"]}
        assert mounted == {volume["name"] for volume in template["spec"]["volumes"]}
        assert any(words[2].startswith(mount["mountPath"]) for mount in container(template)["volumeMounts"])


def test_the_service_and_the_probes_find_the_leader_s_port(tmp_path: Path) -> None:
    leader, worker = templates()
    ports = {port["name"]: port["containerPort"] for port in container(leader)["ports"]}
    file = tmp_path / "model.yaml"
    file.write_text(kubernetes()["ConfigMap"]["data"]["model.yaml"])
    assert ports == {"http": load(file, [], {}).config.serving.port}
    assert [port["targetPort"] for port in kubernetes()["Service"]["spec"]["ports"]] == ["http"]
    selector = kubernetes()["Service"]["spec"]["selector"]
    assert selector.items() <= leader["metadata"]["labels"].items()
    assert not selector.items() <= worker["metadata"]["labels"].items()
    assert "ports" not in container(worker)
    for template in templates():
        allowed = kubernetes()["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]
        assert allowed.items() <= template["metadata"]["labels"].items()


def arguments(template: dict[str, Any], rank: int, size: int, leader: str) -> list[str]:
    """A pod's command line, as Kubernetes expands it with the variables of LeaderWorkerSet."""
    values = {"LWS_GROUP_SIZE": str(size), "LWS_WORKER_INDEX": str(rank), "LWS_LEADER_ADDRESS": leader}
    words = [*container(template)["command"], *container(template)["args"]]
    return [re.sub(r"\$\((\w+)\)", lambda found: values[found[1]], word) for word in words]


class Site:
    """A launch file and programs in the place of those of a cluster."""

    def __init__(self, folder: Path) -> None:
        write_model(folder / "model")
        self.file = folder / "echo.yaml"
        self.file.write_text(f"model: {{source: {folder / 'model'}}}\n")
        self.bin = folder / "bin"
        self.bin.mkdir()
        for name, text in STAND_INS.items():
            (self.bin / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
            (self.bin / name).chmod(0o755)
        self.port = free_port()
        self.settings = ["--set", "parallel.tensor=2", "--set", f"serving.port={self.port}"]
        self.log = folder / "log"

    @contextlib.contextmanager
    def running(self, *commands: list[str], **variables: str) -> Iterator[list[subprocess.Popen[bytes]]]:
        """Processes that serve together."""
        paths = {"PATH": f"{self.bin}:{process_environment()['PATH']}", "RADJAX": str(self.bin / "radjax")}
        environment = {**process_environment(), **paths, **variables}
        with self.log.open("wb") as sink:
            found = [
                subprocess.Popen(command, cwd=ROOT, env=environment, stderr=sink, start_new_session=True)
                for command in commands
            ]
        try:
            self.check()
            yield found
        finally:
            for one in found:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(one.pid, signal.SIGKILL)
                one.wait()

    def check(self) -> None:
        """It becomes ready, both hosts are in it, and it answers."""
        deadline = time.monotonic() + WAIT_S
        with httpx2.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=WAIT_S) as client:
            while True:
                with contextlib.suppress(httpx2.TransportError):
                    if client.get("/readyz").status_code == 200:
                        break
                assert time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.05)
            assert client.post("/generate", json=body([65, 66], 3)).json()["output_ids"] == [65, 66, 65]
        assert "host 1 is there" in self.log.read_text()


@pytest.mark.slow
def test_ctrl_c_ends_what_ssh_started(tmp_path: Path) -> None:
    site = Site(tmp_path)
    command = [str(DEPLOY / "ssh.sh"), str(site.file), "127.0.0.1", "localhost", "--", *site.settings]
    with site.running(command, COORDINATOR_PORT=str(free_ports(3))) as [process]:
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(WAIT_S) == 0, site.log.read_text()


@pytest.mark.slow
def test_sigterm_ends_what_slurm_started(tmp_path: Path) -> None:
    site = Site(tmp_path)
    job = next(job for job in range(SLURM_JOBS) if are_free(SLURM_PORT + 3 * job, 3))
    nodes = {"SLURM_JOB_ID": str(job), "SLURM_JOB_NODELIST": "two-nodes", "SLURM_JOB_NUM_NODES": "2"}
    with site.running([str(DEPLOY / "slurm.sh"), str(site.file), *site.settings], **nodes) as [process]:
        process.terminate()
        assert process.wait(WAIT_S) == 0, site.log.read_text()


def test_the_pods_of_a_group_are_one_service_and_the_end_of_one_drains_it(tmp_path: Path) -> None:
    site, port = Site(tmp_path), free_ports(3)
    commands: list[list[str]] = []
    for rank, template in enumerate(templates()):
        _, serve, _, *words = arguments(template, rank, 2, "127.0.0.1")
        words = [word.replace(":29500", f":{port}") for word in words]
        commands.append([str(site.bin / "radjax"), serve, str(site.file), *words, *site.settings])
    with site.running(*commands) as [leader, worker]:
        worker.terminate()
        assert [leader.wait(WAIT_S), worker.wait(WAIT_S)] == [0, 0], site.log.read_text()
