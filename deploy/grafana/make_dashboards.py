"""Writes the dashboards' JSON, and the lists of panels in docs/dashboards.md, from the Python data beside it.

    .venv/bin/python -m deploy.grafana.make_dashboards

Edit serving.py, learning.py, feedback.py or operations.py, never the JSON: a test compares.
"""

import json
from pathlib import Path

from deploy.grafana.feedback import FEEDBACK
from deploy.grafana.learning import LEARNING
from deploy.grafana.operations import OPERATIONS
from deploy.grafana.panels import Dashboard
from deploy.grafana.serving import SERVING

ROOT = Path(__file__).resolve().parents[2]
DASHBOARDS = (SERVING, LEARNING, FEEDBACK, OPERATIONS)
PAGE = Path("docs/dashboards.md")
MARK = "<!-- Below this line: written by deploy/grafana/make_dashboards.py. -->\n"


def files() -> dict[Path, str]:
    """Path below the project's root -> text, of everything that is written."""
    made = {
        Path("deploy/grafana/dashboards") / each.file_name: json.dumps(each.to_json(), indent=1) + "\n"
        for each in DASHBOARDS
    }
    head, mark, _ = (ROOT / PAGE).read_text().partition(MARK)
    return made | {PAGE: head + mark + "\n" + "\n".join(map(listed, DASHBOARDS))}


def listed(dashboard: Dashboard) -> str:
    """The panels of a dashboard as a Markdown section."""
    lines = [
        f"## {dashboard.title}",
        "",
        dashboard.intro,
        "",
        "| panel | what it says, what to do | bar |",
        "|---|---|---|",
    ]
    for panel in dashboard.panels():
        side = "below" if panel.low_is_bad else "above"
        bar = "" if panel.bar is None else f"{side} {panel.bar:g}"
        lines.append(f"| {panel.title} | {panel.description} | {bar} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    for path, text in files().items():
        (ROOT / path).write_text(text)
        print(path)


if __name__ == "__main__":
    main()
