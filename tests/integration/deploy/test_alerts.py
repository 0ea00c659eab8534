"""When alerts fire, and that what Prometheus is handed is valid; promtool says so where there is one."""

import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from tests.integration.deploy.prometheus import ALERTS, CONFIG, alerts, needs_prometheus


@needs_prometheus
def test_promtool_accepts_configuration_and_rules() -> None:
    for command in (["check", "config", str(CONFIG)], ["check", "rules", str(ALERTS)]):
        done = subprocess.run(["promtool", *command], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


MINUTES = "x60"
CASES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "MadpoNoGateway": ({}, {'up{job="gateway"}': f"1{MINUTES}"}),
    "MadpoNoScorer": ({'up{job="reward"}': f"0{MINUTES}"}, {'up{job="reward"}': f"1{MINUTES}"}),
    "MadpoReplicaDown": ({'up{job="trainer"}': f"0{MINUTES}"}, {'up{job="prometheus"}': f"0{MINUTES}"}),
    "MadpoQueueAway": ({"madpo_queue_up": f"0{MINUTES}"}, {"madpo_queue_up": f"1{MINUTES}"}),
    "MadpoQueueWait": (
        {'madpo_queue_oldest_pending_seconds{queue="train"}': "3000+60x60"},
        {'madpo_queue_oldest_pending_seconds{queue="train"}': "0+60x60"},
    ),
    "MadpoQueueWithoutWorker": (
        {
            'madpo_queue_depth{queue="train"}': f"1{MINUTES}",
            'madpo_worker_last_answer_timestamp_seconds{queue="evaluate"}': "0+60x60",
        },
        {
            'madpo_queue_depth{queue="train"}': f"1{MINUTES}",
            'madpo_worker_last_answer_timestamp_seconds{queue="train",instance="a"}': f"0{MINUTES}",
            'madpo_worker_last_answer_timestamp_seconds{queue="train",instance="b"}': "0+60x60",
        },
    ),
    "MadpoWorkerSilent": (
        {'madpo_worker_last_answer_timestamp_seconds{queue="train"}': f"0{MINUTES}"},
        {'madpo_worker_last_answer_timestamp_seconds{queue="train"}': "0+60x60"},
    ),
    "MadpoJobWithoutProgress": (
        {'madpo_worker_last_progress_timestamp_seconds{queue="train"}': f"0{MINUTES}"},
        {'madpo_worker_last_progress_timestamp_seconds{queue="train"}': "0+60x60"},
    ),
    "MadpoMarginWait": (
        {
            'madpo_training_seconds_total{kind="policy_training",phase="margin_wait"}': "0+15x60",
            'madpo_training_seconds_total{kind="policy_training",phase="compute"}': "0+45x60",
        },
        {
            'madpo_training_seconds_total{kind="policy_training",phase="margin_wait"}': "0+5x60",
            'madpo_training_seconds_total{kind="policy_training",phase="compute"}': "0+55x60",
        },
    ),
    "MadpoDeadLetter": (
        {'madpo_queue_dead_letters{queue="train"}': "2x50 3x9"},
        {'madpo_queue_dead_letters{queue="train"}': "2x20 3x39"},
    ),
    "MadpoAuditGap": (
        {"madpo_gateway_audit_failures_total": "0x50 1x9"},
        {"madpo_gateway_audit_failures_total": "0x20 1x39"},
    ),
}


@needs_prometheus
@pytest.mark.parametrize("alert", CASES)
def test_an_alert_fires_when_it_should_and_only_then(alert: str, tmp_path: Path) -> None:
    trouble, peace = CASES[alert]

    def fires(series: Mapping[str, str]) -> bool:
        """Whether it fires after an hour; promtool says so by complaining that none was expected."""
        test = {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "alert_rule_test": [{"eval_time": "1h", "alertname": alert, "exp_alerts": []}],
        }
        (tmp_path / "test.yml").write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "tests": [test]}))
        command = ["promtool", "test", "rules", str(tmp_path / "test.yml")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert f"alertname: {alert}" in done.stderr + done.stdout or done.returncode == 0, done.stderr
        return done.returncode != 0

    assert fires(trouble)
    assert not fires(peace)


def test_every_alert_is_tried() -> None:
    assert CASES.keys() == alerts().keys()
