"""A small Weights & Biases on this machine: what wandb's own process needs to start a run, stream rows and end it."""

from __future__ import annotations

import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server:
    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}  # id -> what the client said about it
        self.rows: dict[str, list[dict]] = {}
        self.exit_codes: dict[str, list[int]] = {}
        self.resumes: list[str] = []  # ids that were asked for
        self.is_away = False
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: Any) -> None:
                pass

            def answer(self, value: Any) -> None:
                body = json.dumps(value).encode()
                self.send_response(503 if owner.is_away else 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                body = self.body()
                if owner.is_away:
                    self.answer({})
                elif self.path == "/graphql":
                    asked = json.loads(body)
                    self.answer({"data": owner.query(asked["query"], asked.get("variables") or {})})
                elif self.path.endswith("/file_stream"):
                    owner.stream(self.path.split("/")[-2], json.loads(body))
                    self.answer({"exitcode": None, "limits": {}})
                else:
                    self.answer({})

            def do_PUT(self) -> None:
                self.body()
                self.answer({})

            def do_GET(self) -> None:
                self.answer({})

            def body(self) -> bytes:
                if self.headers.get("Transfer-Encoding") == "chunked":
                    found = b""
                    while length := int(self.rfile.readline(), 16):
                        found += self.rfile.read(length)
                        self.rfile.readline()
                    self.rfile.readline()
                else:
                    found = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                return gzip.decompress(found) if self.headers.get("Content-Encoding") == "gzip" else found

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def query(self, text: str, variables: dict[str, Any]) -> dict[str, Any]:
        (operation,) = re.findall(r"(?:query|mutation)\s+(\w+)", text)[:1]
        if operation.startswith("Viewer"):
            team = {"edges": [{"node": {"name": "team"}}]}
            return {"viewer": {"id": "1", "username": "u", "email": "", "entity": "team", "flags": "{}", "teams": team}}
        if operation == "UpsertBucket":
            name = variables.get("name") or "?"
            self.runs.setdefault(name, {}).update({key: value for key, value in variables.items() if value is not None})
            return {"upsertBucket": {"bucket": self.bucket(name), "inserted": True}}
        if operation == "RunResumeStatus":
            name = variables.get("name") or "?"
            self.resumes.append(name)
            known = self.bucket(name) if name in self.runs else None
            return {"model": {"id": "2", "name": "p", "entity": {"id": "3", "name": "team"}, "bucket": known}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in variables.get("files", [])]
            return {"createRunFiles": {"runID": "4", "uploadHeaders": [], "files": files}}
        return {}

    def bucket(self, name: str) -> dict[str, Any]:
        said, rows = self.runs[name], self.rows.get(name, [])
        tail = json.dumps([json.dumps(row) for row in rows[-1:]])
        return {
            "id": "4",
            "name": name,
            "displayName": said.get("displayName") or name,
            "description": "",
            "config": said.get("config") or "{}",
            "summaryMetrics": "{}",
            "sweepName": None,
            "project": {"id": "2", "name": said.get("project") or "p", "entity": {"id": "3", "name": "team"}},
            "historyLineCount": len(rows),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "history": tail,
            "historyTail": tail,
            "events": "[]",
            "eventsTail": "[]",
            "tags": [],
            "wandbConfig": '{"t": 1}',
            "branchPoint": None,
        }

    def stream(self, run: str, sent: dict[str, Any]) -> None:
        lines = (sent.get("files") or {}).get("wandb-history.jsonl", {}).get("content", [])
        self.rows.setdefault(run, []).extend(json.loads(line) for line in lines)
        if sent.get("complete"):
            self.exit_codes.setdefault(run, []).append(sent.get("exitcode", 0))

    def config(self, run: str) -> dict[str, Any]:
        return {key: each.get("value") for key, each in json.loads(self.runs[run]["config"]).items()}

    def values(self, run: str, name: str) -> list[tuple[int, float]]:
        return [(row["trainer/global_step"], row[name]) for row in self.rows[run] if name in row]


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
        thread.join(10)
