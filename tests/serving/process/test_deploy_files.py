"""Dashboard, scrape configuration and alert rules read only what a service has."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.serving.process.service import ROOT, serving

DEPLOY = ROOT / "configs" / "deploy"
NAME = re.compile(r"\b((?:radjax|vllm|sglang)[_:]\w+)\b")


def texts(value: object) -> Iterator[str]:
    """Every text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)


def used() -> dict[str, set[str]]:
    """By file: the names in it that look like metrics."""
    rules = yaml.safe_load((DEPLOY / "alerts.yaml").read_text())
    return {
        "grafana.json": {
            name for text in texts(json.loads((DEPLOY / "grafana.json").read_text())) for name in NAME.findall(text)
        },
        "alerts.yaml": {
            name for group in rules["groups"] for rule in group["rules"] for name in NAME.findall(rule["expr"])
        },
    }


def test_every_metric_that_they_use_is_there_after_three_requests(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        service.wait_for("/readyz", 200)
        for _ in range(3):
            assert service.generate([65, 66], 3).status_code == 200
        text = service.client.get("/metrics").text
    # a family whose first sample is still to come is declared all the same
    families = list(text_string_to_metric_families(text))
    there = {sample.name for family in families for sample in family.samples}
    there |= {f"{family.name}{'_total' * (family.type == 'counter')}" for family in families}
    there |= {f"{family.name}{end}" for family in families for end in ("_bucket", "_sum") if family.type == "histogram"}
    for file, names in used().items():
        assert len(names) > 10
        assert names - there == set(), file


def test_every_panel_has_a_query_and_none_lies_over_another() -> None:
    dashboard = json.loads((DEPLOY / "grafana.json").read_text())
    places: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        mine = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not mine & places
        assert max(x for x, _ in mine) < 24
        places |= mine
        assert panel["type"] == "row" or panel["targets"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_prometheus_reads_the_rules_and_the_port_of_the_default_launch_file() -> None:
    scrape = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text())
    assert all((DEPLOY / name).exists() for name in scrape["rule_files"])
    [job] = scrape["scrape_configs"]
    assert job["metrics_path"] == "/metrics"
    assert job["static_configs"] == [{"targets": ["127.0.0.1:30000"]}]
    rules = yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"][0]["rules"]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    assert all(rule["annotations"]["summary"] and rule["labels"]["severity"] for rule in rules)
