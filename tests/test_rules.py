"""The rules of Prometheus: each is sound, has a runbook, and a test in which it fires and one in which it does not.

That their expressions find something to look at is shown in test_dashboards.py, by a Prometheus that evaluates them.
"""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.grafana.make_dashboards import ROOT
from tests.parts.prometheus import tool
from tests.promql import names
from tests.test_deploy import SERVICES

FOLDER = ROOT / "deploy" / "prometheus"
RULES = [rule for group in yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"] for rule in group["rules"]]
ALERTS = [rule for rule in RULES if "alert" in rule]
TESTS: list[dict[str, Any]] = yaml.safe_load((FOLDER / "rules_test.yml").read_text())["tests"]


def test_promtool_takes_the_rules_and_their_tests() -> None:
    subprocess.run([tool("promtool"), "check", "rules", FOLDER / "rules.yml"], check=True)
    subprocess.run([tool("promtool"), "test", "rules", FOLDER / "rules_test.yml"], check=True)


def test_each_alert_is_tested_where_it_fires_and_where_it_does_not() -> None:
    names = {alert["alert"] for alert in ALERTS}
    assert len(names) == len(ALERTS)
    assert {test["name"] for test in TESTS} == names
    for test in TESTS:
        quiet, firing = (check["exp_samples"] for check in test["promql_expr_test"])
        assert quiet == []
        assert firing == [{"labels": f'{{alertname="{test["name"]}"}}', "value": 1}]


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: str(alert["alert"]))
def test_an_alert_says_what_is_wrong_and_where_to_read_on(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert alert["annotations"].keys() == {"summary", "description", "runbook_url"}
    assert "{{" in alert["annotations"]["summary"], "a summary says which, or how much"
    path, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    section = (ROOT / path).read_text().partition("\n## Alerts\n")[2].partition("\n## ")[0]
    assert anchor == alert["alert"].lower()
    entry = section.partition(f"\n### {alert['alert']}\n")[2].partition("\n### ")[0]
    assert len(entry) > 100, "no runbook"


def test_every_runbook_has_an_alert() -> None:
    section = (ROOT / "docs/operations.md").read_text().partition("\n## Alerts\n")[2].partition("\n## ")[0]
    assert re.findall(r"^### (\w+)$", section, re.MULTILINE) == [alert["alert"] for alert in ALERTS]


def test_recorded_names_are_used() -> None:
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    assert recorded <= set().union(*(names(rule["expr"]) for rule in RULES))


def test_prometheus_loads_them_where_compose_puts_them() -> None:
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    mounted = dict(volume.split(":")[:2] for volume in SERVICES["prometheus"]["volumes"])
    assert config["rule_files"] == [mounted["./prometheus/rules.yml"]]


def test_sentences_of_alerts_are_filled_in(tmp_path: Path) -> None:
    """promtool shows an alert's sentences only where it did not expect the alert, so none is expected here."""
    tests = [
        {
            "interval": test["interval"],
            "input_series": test["input_series"],
            "alert_rule_test": [
                {"alertname": test["name"], "eval_time": test["promql_expr_test"][1]["eval_time"], "exp_alerts": []}
            ],
        }
        for test in TESTS
    ]
    unexpected = tmp_path / "test.yml"
    rules = {"rule_files": [str(FOLDER / "rules.yml")], "evaluation_interval": "1m", "tests": tests}
    unexpected.write_text(yaml.safe_dump(rules))
    done = subprocess.run([tool("promtool"), "test", "rules", unexpected], capture_output=True, text=True)
    summaries = re.findall(r'summary="((?:[^"\\]|\\.)*)"', done.stdout + done.stderr)
    assert len(summaries) >= len(ALERTS), done.stdout + done.stderr
    for summary in summaries:
        assert not re.search(r"\{\{|error|<no value>|NaN|^ | $|  ", summary), summary
