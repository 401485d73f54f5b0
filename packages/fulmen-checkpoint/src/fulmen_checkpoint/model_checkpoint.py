"""Keep the best checkpoints of a training, or the newest."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from fulmen import CheckpointError, ConfigurationError, ModuleError
from fulmen.contracts.logger import call_loggers
from fulmen.errors import listing, warn
from fulmen_checkpoint.arguments import check_arguments, check_overrides
from fulmen_checkpoint.intervals import TimeOfRankZero
from fulmen_checkpoint.kept_files import KeptFiles
from fulmen_checkpoint.places import Place, place_of
from fulmen_checkpoint.plan import Plan
from fulmen_checkpoint.ranking import Ranking

if TYPE_CHECKING:
    from fulmen import Module, Trainer
    from fulmen.contracts.data_hooks import Stage

Moment = Literal["step", "validation", "epoch", "end"]


class ModelCheckpoint(KeptFiles):
    """Keeps the ``save_top_k`` best checkpoints by a logged metric, or without a metric the newest.

    A file is tied to the evaluation that measured its metric: the weights in it are those that were evaluated. Where a
    saving is due between two evaluations, it takes place at the next one. A metric that is not a number is never the best.
    A new file is complete, flushed and verified before an older one is removed; a failure is raised and leaves all earlier
    files, and what this callback knows of them, as they were. Rank 0 decides and writes.

    With a URL as ``dirpath``, each file has a marker beside it, ``<file>.complete``, which is written last;
    :func:`complete_checkpoints` and ``ckpt_path="last"`` look at files with a marker only.

    Args:
        dirpath: Folder or URL (``s3://bucket/run``); ``None``: ``checkpoints`` in the logger's folder, or in
            ``default_root_dir`` without one.
        filename: Name without extension, with fields such as ``{epoch}``, ``{step}`` and ``{val_loss:.2f}``; ``None``:
            ``"{epoch}-{step}"``. A metric that was not measured on the weights in the file is ``unknown``; one that is
            logged with ``on_step`` and ``on_epoch`` is that of the step where the epoch has no value yet.
        monitor: The logged metric to compare, or ``"epoch"`` or ``"step"``; ``None``: the newest file is the best.
        verbose: Print what is saved and what is not, and why.
        save_last: Also keep the newest state as ``last.ckpt``, whenever a saving is due and when the training ends.
            ``"link"``: as a symbolic link where it equals a kept file.
        save_top_k: How many files to keep. 0: none; -1: all.
        save_weights_only: Save what is needed to use the module, not to continue its training.
        mode: Whether ``"min"`` or ``"max"`` of the metric is better.
        auto_insert_metric_name: Write ``name=`` before each value in the file name; ``/`` in a name becomes ``_``.
        every_n_train_steps: Save after every n-th optimizer step, at the end of its batch; each step of each optimizer counts,
            as in ``trainer.global_step``. 0 or ``None``: not by steps.
        train_time_interval: Save when so much time has passed: a timedelta, or seconds. ``None``: not by time.
        every_n_epochs: Save in every n-th epoch. 0: not by epochs; ``None``: 1 where nothing else is given, else 0.
        save_on_train_epoch_end: With ``every_n_epochs``: ``True``: save at the ends of epochs; ``False``: after validations;
            ``None``: wherever the metric is measured, and at the ends of epochs without a monitor. What a validation at the
            end of an epoch measures is saved at the end of the epoch, when the means of its training are known too.
        save_on_exception: Also save when the training fails, as ``exception-<name>.ckpt``. Rank 0 does it alone: of several
            ranks, the file lacks what the others have of their own, and a resume from it is not exact and says so.
        enable_version_counter: A file that another training left gets a neighbour ``<name>-v1.ckpt``; ``False``: it is
            replaced.
        asynchronous: Copy the state, and write it in a thread while the training goes on. A saving that is due while an
            earlier one is still being written waits for it: none is left out. A failure is raised after the step that goes
            on; a fit ends when all is written.

    Attributes:
        best_model_path: The best file so far; without a monitor the newest. Empty before.
        best_model_score: Its score, a tensor on the host; ``None`` before, and without a monitor.
        last_model_path: The newest state: ``last.ckpt`` with ``save_last``, else the newest file. Empty before.
        current_score: The score that was looked at last.

    Raises:
        ConfigurationError: An argument has a wrong value, or two contradict each other.
    """

    def __init__(
        self,
        dirpath: str | os.PathLike[str] | None = None,
        filename: str | None = None,
        monitor: str | None = None,
        verbose: bool = False,
        save_last: bool | Literal["link"] | None = None,
        save_top_k: int = 1,
        save_weights_only: bool = False,
        mode: Literal["min", "max"] = "min",
        auto_insert_metric_name: bool = True,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | float | None = None,
        every_n_epochs: int | None = None,
        save_on_train_epoch_end: bool | None = None,
        save_on_exception: bool = False,
        enable_version_counter: bool = True,
        asynchronous: bool = False,
    ) -> None:
        check_arguments(locals())
        check_overrides(type(self))
        self.dirpath = None if dirpath is None else os.fspath(dirpath)
        self.filename, self.monitor, self.mode, self.verbose = filename, monitor, mode, verbose
        self.save_last, self.save_top_k, self.save_weights_only = save_last, save_top_k, save_weights_only
        self.auto_insert_metric_name, self.enable_version_counter = auto_insert_metric_name, enable_version_counter
        self.save_on_train_epoch_end, self.save_on_exception = save_on_train_epoch_end, save_on_exception
        self.every_n_train_steps, self.asynchronous = every_n_train_steps or 0, asynchronous
        seconds = train_time_interval.total_seconds() if isinstance(train_time_interval, timedelta) else train_time_interval
        self.train_time_interval = None if seconds is None else timedelta(seconds=seconds)
        others = self.every_n_train_steps or seconds is not None
        self.every_n_epochs = every_n_epochs if every_n_epochs is not None else 0 if others else 1
        self._fitting = True  # until a run of another kind begins
        self._place: Place | None = None
        if others:
            self.__dict__["on_train_batch_end"] = self._after_batch  # of the instance, so that others pay nothing per step
        self._reset()

    def _reset(self) -> None:
        self._ranking = Ranking(self.mode, self.save_top_k)
        self.last_model_path = ""
        self.current_score: Tensor | None = None
        self._measured = -1  # training batches done when the score was measured that was looked at last
        self._last_saved = -1  # training batches done in last_model_path
        self.saved_batches = -1
        self._due = self._validated = self._warned = False
        self._at_end = False  # whether the latest validation was at the end of its epoch
        self._step = 0  # at the latest look
        self._loaded: str | None = None  # the folder in a state that was loaded
        self._newest: list[str] = []  # the file that was written last, if it was to be kept, and the name that repeats it
        self._dropped: list[str] = []  # files that leave when that is done
        self._time: TimeOfRankZero | None = None
        self._publish()

    def _publish(self) -> None:
        self.best_model_path = self._ranking.best
        score = self._ranking.best_score
        self.best_model_score = None if score is None else torch.tensor(score, dtype=torch.float64)

    # ---- When

    def setup(self, trainer: Trainer, module: Module, stage: Stage) -> None:
        """Find the folder, and forget what an earlier training of this callback kept."""
        self._fitting = stage == "fit"
        if not self._fitting:
            return
        self._reset()
        self._place = place_of(self.dirpath if self.dirpath is not None else f"{trainer.log_dir}/checkpoints")

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        """Look whether the files of the training that is resumed are still there."""
        if self._loaded is not None and self._loaded != self._folder:
            best, score = self._ranking.best, self._ranking.best_score
            warn(
                "checkpoint-dirpath",
                f"the training that is resumed kept its checkpoints in {self._loaded}, and this one uses {self._folder}: "
                "those files stay and are not counted in save_top_k, but the best of them is still compared with",
            )
            best = best if best.endswith(self.FILE_EXTENSION) else ""
            self._ranking = Ranking(self.mode, self.save_top_k, earlier=(best, score) if best and score is not None else None)
            self._ranking.find_best()
            self.last_model_path, self._newest, self._dropped = "", [], []
        self._forget_what_is_not_there(trainer)
        if trainer.is_global_zero:
            self._complete(trainer)
        self._loaded = None
        self._publish()

    def _forget_what_is_not_there(self, trainer: Trainer) -> None:
        """The paths in a checkpoint are what somebody wrote there: only files of this training are replaced and removed."""
        gone, foreign = trainer.runtime.broadcast(self._not_own(trainer) if trainer.is_global_zero else None)
        if gone:
            text = "files that were kept when the checkpoint that is resumed was written are gone, and not counted any more"
            warn("checkpoint-missing", f"{text}: {listing(gone)}")
        if foreign:
            warn(
                "checkpoint-foreign",
                f"the checkpoint that is resumed names files as its own that are not: {listing(foreign)}; they stay, and are "
                "not counted",
            )
        for path in (*gone, *foreign):
            self._ranking.remove(path)
        if self.last_model_path in foreign:
            self.last_model_path = ""
        if set(self._newest) & set(foreign):
            self._newest = []

    def _not_own(self, trainer: Trainer) -> tuple[list[str], list[str]]:
        """Of the files that a loaded state names: which are gone, and which belong to others."""
        if self._loaded is None:
            return [], []
        paths = dict.fromkeys(path for path in (*self._ranking.files, self.last_model_path, *self._newest) if path)
        inside = [path for path in paths if os.path.dirname(path) == self._folder]
        gone = [path for path in inside if not self._there.exists(path)]
        foreign = [path for path in paths if path not in gone and not self._is_own(trainer, path)]
        return [path for path in gone if path in self._ranking.files], foreign

    def _complete(self, trainer: Trainer) -> None:
        """Do what was to follow on the newest file, where a kill came before: it knows what that was."""
        path, last = self._newest or ("", "")
        if path and last and self._last_saved == trainer.progress.batches and self._is_own(trainer, path):
            self._there.repeat(path, last, self.save_last == "link")
        for path in self._dropped:
            if not any(other.holds(path) for other in trainer.checkpoint_callbacks) and self._is_own(trainer, path):
                self._there.remove(path)

    def _is_own(self, trainer: Trainer, path: str) -> bool:
        if os.path.dirname(path) != self._folder or not self._there.exists(path):
            return False
        return self._there.training_of(path) in (trainer.run_id, "")

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        """Start the clock.

        Raises:
            ConfigurationError: It is to save after validations, and there are none.
        """
        if self.save_on_train_epoch_end is False and not trainer.enable_validation:
            raise ConfigurationError(
                "ModelCheckpoint save_on_train_epoch_end=False saves after validations, and this training has none; leave it "
                "out, or set it to True"
            )
        self._step = trainer.global_step
        if self.train_time_interval is not None:
            seconds = self.train_time_interval.total_seconds()
            if trainer.world_size > 1:
                self._time = TimeOfRankZero(seconds)
            else:
                trainer.every(seconds, lambda: self._interval_ended(trainer))

    def _after_batch(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        before, self._step = self._step, trainer.global_step
        if self._time is not None and self._time.is_over(trainer):
            self._interval_ended(trainer)
        every = self.every_n_train_steps
        if every and before // every != self._step // every:  # several optimizers may step in one batch
            self._interval_ended(trainer)

    def _interval_ended(self, trainer: Trainer) -> None:
        self._due = True
        self._act(trainer, "step", last=bool(self.save_last))

    def on_validation_start(self, trainer: Trainer, module: Module) -> None:
        """Note whether the end of the epoch follows."""
        if trainer.phase == "validate" and self._fitting:
            self._at_end = trainer.progress.epoch_is_complete

    def on_validation_end(self, trainer: Trainer, module: Module) -> None:
        """Save what the validation measured."""
        if trainer.phase != "validate" or not self._fitting:
            return
        self._validated = True
        if self.save_on_train_epoch_end is True or (self.save_on_train_epoch_end is None and self._at_end):
            return  # on_train_epoch_end follows on the same weights, when the means of the epoch are known too
        by_epoch = self._epoch_is_due(trainer) and (self.monitor is not None or self.save_on_train_epoch_end is False)
        if by_epoch or self._due:
            self._act(trainer, "validation", last=bool(self.save_last) and by_epoch)

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        """Save what the epoch measured."""
        if self.save_on_train_epoch_end is False:
            return
        by_epoch = self._epoch_is_due(trainer)
        if by_epoch or self._due:
            self._act(trainer, "epoch", last=bool(self.save_last) and by_epoch)

    def _epoch_is_due(self, trainer: Trainer) -> bool:
        return bool(self.every_n_epochs) and (trainer.current_epoch + 1) % self.every_n_epochs == 0

    def on_train_stop(self, trainer: Trainer, module: Module) -> None:
        """Keep the newest state, from which the training can be resumed in the middle of its epoch."""
        self._save_end(trainer)

    def on_train_end(self, trainer: Trainer, module: Module) -> None:
        """Keep the newest state, and wait until all is written."""
        self._save_end(trainer)
        trainer.writer.finish()

    def _save_end(self, trainer: Trainer) -> None:
        if self.save_last and self._last_saved != trainer.progress.batches:
            self._act(trainer, "end", last=True, candidate=False)

    def on_exception(self, trainer: Trainer, module: Module, exception: BaseException) -> None:
        """Save where the training failed, if that is wanted and the failure was not one of saving."""
        if not self.save_on_exception or not self._fitting or not trainer.progress.batches:
            return
        if isinstance(exception, CheckpointError) or not trainer.is_global_zero:
            return  # other ranks may not come this far, so nothing is asked of them
        name = f"exception{self.CHECKPOINT_JOIN_CHAR}{self._name(trainer, self._template)}"
        path = self._free_path(trainer, name, [])
        self._there.write(trainer.collect_checkpoint(self.save_weights_only, alone=True), path)
        self._tell(trainer, f"saved {path} on {type(exception).__name__}")

    # ---- What

    def _act(self, trainer: Trainer, moment: Moment, last: bool, candidate: bool = True) -> None:
        """Decide on rank 0, take note on all ranks, and write. The same call on every rank."""
        plan = Plan()
        if trainer.is_global_zero:
            try:
                plan = self._decide(trainer, moment, last, candidate)
            except (CheckpointError, ConfigurationError) as error:
                plan = Plan(error=str(error))
        plan = Plan(**trainer.runtime.broadcast(vars(plan)))
        if plan.error:
            raise CheckpointError(plan.error)
        if plan.missing:
            raise ModuleError(plan.missing)
        if plan.measured is not None:
            self._measured, self._due = plan.measured, False
            self.current_score = None if plan.score is None else torch.tensor(plan.score, dtype=torch.float64)
        if plan.path or plan.last:
            others = [each for each in trainer.checkpoint_callbacks if each is not self]
            if self.asynchronous or any(each.saved_batches == trainer.progress.batches for each in others):
                # before anything of the next is noted: what failed goes back to where it was, and of two files of one step
                # the one that knows more is the newer, which ckpt_path="last" takes
                trainer.writer.finish()
            self._write(trainer, plan)

    def _decide(self, trainer: Trainer, moment: Moment, last: bool, candidate: bool) -> Plan:
        """What to do. On rank 0 only."""
        plan, now = Plan(), trainer.progress.batches
        keep = candidate and self._measured != now  # a position is looked at once
        if keep and self.monitor is not None:
            found = self._values(trainer, [self.monitor], of_steps=moment == "step").get(self.monitor)
            keep = found is not None
            plan.score, plan.missing = (float(found), "") if found is not None else (None, self._complaint(trainer, moment))
        if keep:
            plan.measured = now
            self._keep(trainer, plan)
        if (last and self._last_saved != now) or (plan.path and self.save_last):  # it knows all files that are kept
            before = self.last_model_path
            plan.last = self._free_path(trainer, self._name(trainer, self.CHECKPOINT_NAME_LAST), [before])
            if before and before != plan.last and not self._ranking.files.keys() & {before}:
                plan.drop.append(before)  # its name is a template, and changes
        return plan

    def _keep(self, trainer: Trainer, plan: Plan) -> None:
        """Find out whether the score is good enough, and which file comes and which go."""
        score = plan.score
        if not self._ranking.admits(score):
            if score is not None and math.isnan(score) and self.save_top_k and not self._warned:
                self._warned = True
                warn(
                    "checkpoint-nan",
                    f"{self.monitor} is not a number at step {trainer.global_step}: not saved as one of the best",
                )
            if self.save_top_k:
                self._tell(trainer, f"{self.monitor} = {score} is not among the best {self.save_top_k}")
            return
        plan.drop = self._ranking.displaced(score)
        plan.path = self._free_path(trainer, self._name(trainer, self._template), plan.drop)
        others = [each for each in trainer.checkpoint_callbacks if each is not self]
        plan.drop = [path for path in plan.drop if path != plan.path and not any(other.holds(path) for other in others)]
        what = "" if score is None else f": {self.monitor} = {score} is among the best {self.save_top_k}"
        self._tell(trainer, f"saving {plan.path}{what if self.save_top_k > 0 else ''}")

    def _complaint(self, trainer: Trainer, moment: Moment) -> str:
        """Why the metric cannot decide at this moment, where it should; empty: it will."""
        age = trainer.metric_age(self.monitor or "")
        must_exist = self.save_on_train_epoch_end is False or (
            moment == "epoch" and (self._validated or not trainer.enable_validation)
        )
        if age is None and must_exist and moment in ("validation", "epoch"):
            logged = listing(sorted(trainer.callback_metrics))
            return f"ModelCheckpoint monitors {self.monitor!r}, which was never logged; logged are: {logged}"
        if age and moment == "epoch" and self.save_on_train_epoch_end is True and age < trainer.progress.batch:
            return (
                f"ModelCheckpoint save_on_train_epoch_end=True saves at the end of the epoch, and {self.monitor!r} was "
                f"measured {age} batches before: it does not belong to these weights. Leave the argument out, to save where "
                "it is measured"
            )
        return ""

    def _write(self, trainer: Trainer, plan: Plan) -> None:
        """Take note of what will be there, so that the file says so too, and write it."""
        before = (self._ranking.copy(), self.last_model_path, self._last_saved, self.saved_batches)
        self._newest, self._dropped = [plan.path, plan.last], plan.drop
        for path in plan.drop:
            self._ranking.remove(path)
        if plan.path:
            self._ranking.add(plan.path, plan.score)
        if plan.last:
            self._last_saved = trainer.progress.batches
        if not self.save_weights_only:
            self.saved_batches = trainer.progress.batches
        self.last_model_path = plan.last or (self.last_model_path if self.save_last else plan.path)
        self._publish()
        written = [path for path in (plan.path, plan.last) if path]
        linked_from = self.last_model_path if self.save_last else ""
        try:
            payload = trainer.collect_checkpoint(self.save_weights_only)
        except BaseException:
            self._go_back(before)
            raise
        write = partial(plan.carry_out, place=self._there, link=self.save_last == "link", linked_from=linked_from)
        save = trainer.writer.start if self.asynchronous else trainer.writer.write_now
        save(payload, write, partial(self._written, trainer, written, before), listing(written))

    def _written(self, trainer: Trainer, written: list[str], before: tuple[Any, ...], failure: CheckpointError | None) -> None:
        """Take note of how writing ended, on every rank."""
        if failure is not None:
            self._go_back(before)
        elif trainer.is_global_zero:
            for path in written:
                call_loggers(trainer.loggers, lambda logger, path=path: logger.after_save_checkpoint(self, path))  # type: ignore[misc]

    def _go_back(self, before: tuple[Any, ...]) -> None:
        self._ranking, self.last_model_path, self._last_saved, self.saved_batches = before
        self._newest, self._dropped = [], []
        self._publish()

    def _tell(self, trainer: Trainer, text: str) -> None:
        if self.verbose:
            trainer.print(text)

    # ---- State

    @property
    def state_key(self) -> str:
        """Two callbacks that save by different rules have different keys."""
        rules = {
            "monitor": self.monitor,
            "mode": self.mode,
            "every_n_train_steps": self.every_n_train_steps,
            "every_n_epochs": self.every_n_epochs,
            "train_time_interval": self.train_time_interval,
        }
        return f"{type(self).__qualname__}{rules!r}"

    def state_dict(self) -> dict[str, Any]:
        """The files that are kept, with their scores."""
        return {
            "monitor": self.monitor,
            "dirpath": self._folder if self._place is not None else self._loaded or "",
            "files": dict(self._ranking.files),
            "earlier": self._ranking.earlier,
            "best_model_path": self.best_model_path,
            "best_model_score": self.best_model_score,
            "best_k_models": self.best_k_models,
            "current_score": self.current_score,
            "last_model_path": self.last_model_path,
            "newest": list(self._newest),
            "dropped": list(self._dropped),
            "measured": self._measured,
            "last_saved": self._last_saved,
            "due": self._due,
            "validated": self._validated,
            "at_end": self._at_end,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from there. Only a fit does: a test of an older checkpoint leaves what is known as it is."""
        if not self._fitting:
            return
        self._loaded = state_dict["dirpath"]
        files = {str(path): None if score is None else float(score) for path, score in state_dict["files"].items()}
        earlier = state_dict["earlier"] and (str(state_dict["earlier"][0]), float(state_dict["earlier"][1]))
        self._ranking = Ranking(self.mode, self.save_top_k, files, earlier=earlier)
        self._ranking.best = state_dict["best_model_path"]
        self.current_score, self.last_model_path = state_dict["current_score"], state_dict["last_model_path"]
        self._measured, self._last_saved = int(state_dict["measured"]), int(state_dict["last_saved"])
        self._due, self._validated = state_dict["due"], state_dict["validated"]
        self._at_end = bool(state_dict.get("at_end", False))
        self._newest, self._dropped = (
            list(map(str, state_dict.get("newest", ()))),
            list(map(str, state_dict.get("dropped", ()))),
        )
        self._publish()
