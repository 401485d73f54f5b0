"""One run in MLflow: the only file that talks to its client. Used from the sender's thread."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fulmen_mlflow.sender import Away, Command, Refused

MOST_PARAMS = 100  # per request
_RETRY = (408, 429)
CONNECT_SECONDS, ANSWER_SECONDS = 5.0, 30.0


@dataclass
class Target:
    """Which run of which experiment on which server, as plain data."""

    tracking_uri: str
    experiment_name: str
    run_name: str
    run_id: str | None = None
    artifact_location: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    local_folder: str | None = None  # of a database of our own, made when it is needed
    resumed: bool = False  # the id is that of a checkpoint: where there is no such run, a new one takes its place

    def plain(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


class Store:
    """Delivers commands to the run of a target, which it finds or creates with the first one."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.run_id = target.run_id
        self.experiment_id: str | None = None
        self._client: Any = None
        self._params: dict[str, str] = {}  # as the run has them
        self._is_open = False
        self._ended = False
        self.lost: str | None = None  # the run of a checkpoint, where there is no such run

    def deliver(self, commands: list[Command]) -> None:
        """Send commands of one kind.

        Raises:
            Away: The server does not answer, or not now.
            Refused: There is no such run, or no permission.
        """
        self._knock()
        if not self._is_open:
            self._open()
        kind = commands[0].kind
        if self._ended and kind != "status":
            self._transient(self._client.update_run, self.run_id, status="RUNNING")
            self._ended = False
        getattr(self, f"_send_{kind}")([item for command in commands for item in command.data])

    # ---- The run

    def _knock(self) -> None:
        """See whether a server answers at all, before MLflow's client begins its own retries, which last for minutes."""
        if not self.target.tracking_uri.startswith(("http://", "https://")):
            return
        import requests

        try:
            requests.get(f"{self.target.tracking_uri.rstrip('/')}/health", timeout=(CONNECT_SECONDS, ANSWER_SECONDS))
        except requests.exceptions.SSLError:
            pass  # somebody answers; whether the certificate is acceptable is the client's decision
        except requests.exceptions.RequestException as error:
            raise Away(f"{self.target.tracking_uri} does not answer ({type(error).__name__})") from error

    def _open(self) -> None:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        if self.target.local_folder is not None:
            Path(self.target.local_folder).mkdir(parents=True, exist_ok=True)
        try:
            self._client = MlflowClient(tracking_uri=self.target.tracking_uri)
            if self.run_id is not None and not self._transient(self._continue, self.run_id):
                self.lost, self.run_id = self.run_id, None
            if self.run_id is None:
                self._transient(self._create)
        except MlflowException as error:
            raise Refused(f"{type(error).__name__}: {error}") from error
        self._is_open = True

    def _create(self) -> None:
        from mlflow.tracking.context import registry

        self.experiment_id = self._experiment()
        tags = registry.resolve_tags(self.target.tags)
        run = self._client.create_run(self.experiment_id, tags=tags, run_name=self.target.run_name)
        self.run_id = run.info.run_id

    def _continue(self, run_id: str) -> bool:
        """Go on with a run; ``False`` where a resumed one is not there."""
        from mlflow.exceptions import MlflowException

        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if self.target.resumed and error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        if run.info.lifecycle_stage == "deleted":
            raise Refused(f"the run {run_id} is deleted; restore it, or leave out run_id and ckpt_path")
        self.experiment_id = run.info.experiment_id
        self._params = dict(run.data.params)
        self._client.update_run(run_id, status="RUNNING")
        self._send_tags([[name, value] for name, value in self.target.tags.items()])
        return True

    def _experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        name = self.target.experiment_name
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name, artifact_location=self.target.artifact_location))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process was quicker
                    raise
                found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id)

    def _transient(self, call: Any, *args: Any, **kwargs: Any) -> Any:
        """Call MLflow; a failure that may pass is :class:`Away`."""
        from mlflow.exceptions import MlflowException

        try:
            return call(*args, **kwargs)
        except MlflowException as error:
            status = error.get_http_status_code()  # type: ignore[no-untyped-call]
            if status >= 500 or status in _RETRY:
                raise Away(f"{self.target.tracking_uri}: {str(error).partition(chr(10))[0]}") from error
            raise
        except OSError as error:  # of the disk, or of the connection
            raise Away(f"{self.target.tracking_uri}: {type(error).__name__}: {error}") from error

    # ---- Commands

    def _send_metrics(self, rows: list[Any]) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(name, value, timestamp, step) for name, value, timestamp, step in rows]
        self._transient(self._client.log_batch, self.run_id, metrics=metrics, synchronous=True)

    def _send_params(self, pairs: list[Any]) -> None:
        """Parameters that are new. MLflow never changes one: where a value differs, it goes into a tag."""
        from mlflow.entities import Param

        new = {name: value for name, value in pairs if name not in self._params}
        changed = {name: value for name, value in pairs if self._params.get(name, value) != value}
        items = list(new.items())
        for start in range(0, len(items), MOST_PARAMS):
            part = items[start : start + MOST_PARAMS]
            params = [Param(name, value) for name, value in part]
            self._transient(self._client.log_batch, self.run_id, params=params, synchronous=True)
            self._params.update(part)
        if changed:
            self._send_tags([[f"fulmen.changed.{name}"[:250], value] for name, value in changed.items()])
            raise ValueError(
                f"parameters of an MLflow run cannot change; these have new values, which are in tags 'fulmen.changed.NAME': "
                f"{', '.join(sorted(changed))}"
            )

    def _send_tags(self, pairs: list[Any]) -> None:
        for name, value in pairs:
            self._transient(self._client.set_tag, self.run_id, name, value)

    def _send_text(self, pairs: list[Any]) -> None:
        for text, path in pairs:
            self._client.log_text(self.run_id, text, path)

    def _send_artifact(self, uploads: list[Any]) -> None:
        """Upload files and folders; those that were put aside for it are removed."""
        for path, artifact_path, aside in uploads:
            try:
                upload = self._client.log_artifacts if os.path.isdir(path) else self._client.log_artifact
                upload(self.run_id, path, artifact_path)
            finally:
                if aside is not None:
                    remove(aside)

    def _send_status(self, statuses: list[Any]) -> None:
        self._transient(self._client.set_terminated, self.run_id, status=statuses[-1])
        self._ended = True


def remove(folder: str) -> None:
    """Remove a folder that was made for an upload."""
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
