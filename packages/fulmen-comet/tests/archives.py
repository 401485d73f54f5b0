"""Read what Comet wrote for a later upload."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

ITS_OWN = ("sys.", "process duration")


def archives(folder) -> list[Path]:
    return sorted(Path(folder).rglob("*.zip"), key=lambda path: path.stat().st_mtime_ns)


def messages(folder, kind: str) -> list[dict]:
    found = []
    for path in archives(folder):
        with zipfile.ZipFile(path) as archive:
            lines = [json.loads(line) for line in archive.read("messages.json").decode().splitlines()]
            found += [line["payload"] for line in lines if line["type"] == kind]
    return found


def metrics(folder) -> list[dict]:
    found = [payload["metric"] for payload in messages(folder, "metric_msg")]
    return [each for each in found if not each["metricName"].startswith(ITS_OWN)]


def values(folder, name: str) -> list[tuple[int, float]]:
    return [(each["step"], each["metricValue"]) for each in metrics(folder) if each["metricName"] == name]


def params(folder) -> dict:
    found = [payload["param"] for payload in messages(folder, "parameter_msg")]
    return {each["paramName"]: each["paramValue"] for each in found if each["source"] == "manual"}


def others(folder) -> dict:
    return {payload["key"]: payload["value"] for payload in messages(folder, "log_other")}


def assets(folder) -> dict:
    found = {}
    for path in archives(folder):
        with zipfile.ZipFile(path) as archive:
            for line in archive.read("messages.json").decode().splitlines():
                payload = json.loads(line)["payload"]
                if payload.get("upload_type") == "asset":
                    found[payload["additional_params"]["fileName"]] = json.loads(archive.read(payload["file_path"]))
    return found


def about(path: Path) -> dict:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("experiment.json"))
