"""Kill a training over and over, start it again from its newest checkpoint, and compare what comes out.

``python tests/crash/kill_driver.py --kills 25 --seed 1 --workers 0 --model mlp`` prints the figures and ends with status 0
where nothing was lost. ``--model`` is a name of ``crash_job.NETWORKS`` or ``FILE.py:FUNCTION``; the function takes a seed
and a number of workers and returns a module, a training loader and a validation loader.

Importing PyTorch takes seconds, so this process imports it once and forks a child per life. The child alone is killed, with
SIGKILL: after a random time, at a random moment of a random step, when a half-written file has reached a random size, or
right before the n-th time that it touches a file behind a random step, or micro- or milliseconds after (by a timer, exactly).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import fulmen_precision.mixed
import fulmen_swa.ema
import fulmen_swa.swa
import torch
import torch._dynamo  # all that a training would import later, so that a child need not
from crash_job import ACCUMULATE, EPOCHS, STEPS, temporaries, train
from crash_same import differences

from fulmen import CheckpointError, read_checkpoint

BATCHES = STEPS * ACCUMULATE
KILLS_PER_ROUND = 9
LIMIT = 120.0  # seconds after which a life is held to hang
KILLED = -signal.SIGKILL, -signal.SIGALRM
"""Statuses of lives that were ended from outside: the kernel ends a process at SIGALRM as it does at SIGKILL."""
TOUCHES = {"open", "os.rename", "os.link", "os.symlink", "os.remove", "os.mkdir", "os.truncate", "fsync"}


@dataclass
class Plan:
    """When a life ends."""

    how: str
    """``"time"`` after the fork, ``"step"``, ``"file"`` or ``"touch"``; ``"never"``."""
    batch: int = 0
    """The batch behind which the rest counts."""
    wait: float = 0.0
    """Seconds."""
    size: int = 0
    """Bytes in a half-written file."""
    count: int = 0
    """How many times a file is touched."""
    where: str = ""
    """Only files whose path has this in it."""


@dataclass
class Figures:
    """What happened, and all that went wrong."""

    kills: int = 0
    rounds: int = 0
    lives: int = 0
    how: Counter[str] = field(default_factory=Counter)
    where: Counter[str] = field(default_factory=Counter)
    progress: Counter[int] = field(default_factory=Counter)
    """Tenth of the training, by the last batch that was told of."""
    touched: Counter[str] = field(default_factory=Counter)
    lost_batches: int = 0
    """Batches that were done again, over all kills."""
    worst_lost_batches: int = 0
    orphans: int = 0
    """Loader workers that had to be killed."""
    problems: list[str] = field(default_factory=list)


class Life:
    """One child, and what it tells."""

    def __init__(self, options: dict[str, Any], folder: Path, plan: Plan) -> None:
        self.plan, self.folder, self.told, self._rest = plan, folder, [], b""
        self.pipe, writing = os.pipe()
        os.set_blocking(self.pipe, False)
        self.log = folder.with_suffix(".log")
        self.began = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.pipe)
            be_born(options, folder, plan, writing, self.log)  # never returns
        os.close(writing)
        self.status: int | None = None

    def close(self) -> None:
        os.close(self.pipe)

    def last(self, what: str, default: int = 0) -> int:
        """The latest number that was told under this name."""
        return next((int(line.split()[1]) for line in reversed(self.told) if line.split()[0] == what), default)

    def listen(self, seconds: float) -> None:
        """Take what is told within a time; returns as soon as there is something, or the child has ended."""
        if select.select([self.pipe], [], [], seconds)[0]:
            lines = (self._rest + os.read(self.pipe, 1 << 16)).split(b"\n")
            self._rest = lines.pop()
            self.told.extend(line.decode() for line in lines)
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None

    def live(self) -> None:
        """Until the child ends, or is killed as planned."""
        plan = self.plan
        while self.status is None:
            self.listen(0.001)
            if time.monotonic() - self.began > LIMIT:
                return self.kill()
            reached = self.last("step", self.last("start", -1)) >= plan.batch
            if plan.how == "time" and time.monotonic() - self.began >= plan.wait:
                return self.kill()
            if plan.how == "step" and reached:
                time.sleep(plan.wait)
                return self.kill()
            if plan.how == "file" and reached and self.is_writing():
                return self.kill()

    def is_writing(self) -> bool:
        """Whether a half-written file has, within the next hundredth of a second, so many bytes."""
        until = time.monotonic() + 0.01
        while time.monotonic() < until:
            for path in temporaries(self.folder):
                try:
                    if path.stat().st_size >= self.plan.size:
                        return True
                except FileNotFoundError:
                    continue
        return False

    def kill(self) -> None:
        """SIGKILL, and what was told until then."""
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.listen(0)

    @property
    def output(self) -> str:
        """What the child wrote, for people who look for a defect."""
        return self.log.read_text(errors="replace")[-3000:]


def be_born(options: dict[str, Any], folder: Path, plan: Plan, pipe: int, log: Path) -> None:
    """The child. Its output goes to a file."""
    status = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        reached = [plan.batch == 0]

        def tell(line: str) -> None:
            os.write(pipe, f"{line}\n".encode())
            if line.startswith(("step", "start")):
                reached[0] = reached[0] or int(line.split()[1]) >= plan.batch

        if plan.how == "touch":
            die_when_touching(str(folder), plan, reached, tell)
        train(options, folder, tell)
        status = 0
    except BaseException:  # noqa: BLE001  the driver reads it in the file
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def die_when_touching(folder: str, plan: Plan, reached: list[bool], tell: Any) -> None:
    """Have this process end right before it touches a file in ``folder`` for the n-th time after a batch, or a moment later."""
    left, main = [plan.count], os.getpid()

    def touch(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in TOUCHES or not reached[0] or os.getpid() != main:
            return
        paths = [str(path) for path in arguments[:2] if isinstance(path, (str, os.PathLike))]
        writes = event != "open" or (len(arguments) > 2 and arguments[2] & (os.O_WRONLY | os.O_RDWR))
        if writes and any(path.startswith(folder) and plan.where in path for path in paths):
            left[0] -= 1
            if left[0] <= 0:
                tell(f"touched {event} {paths[-1]}")
                left[0] = 1 << 30
                if plan.wait:
                    signal.setitimer(signal.ITIMER_REAL, plan.wait)  # the kernel ends it, whatever it does then
                else:
                    os.kill(os.getpid(), signal.SIGKILL)  # right before

    flush = os.fsync

    def watched(descriptor: int) -> None:
        touch("fsync", (os.readlink(f"/proc/self/fd/{descriptor}"),) if sys.platform == "linux" else ())
        flush(descriptor)

    os.fsync = watched
    sys.addaudithook(touch)


# ---- Which lives, and what must hold after each


def plan_of(rng: random.Random, done: int, lives: int, seconds: float) -> Plan:
    """When the next life ends, so that the rest of the training is spread over the ``lives`` that remain."""
    how = rng.choice(["time", "step", "file", "file", "touch", "touch"])
    batch = min(BATCHES, done + int(rng.uniform(0, 2 * (BATCHES - done) / (lives + 1))))
    if rng.random() < 0.1:
        batch = 0  # from the very start: nothing is saved yet, or the state is being restored
    if how == "time":
        return Plan(how, wait=rng.uniform(0, seconds / 2))
    if how == "step":
        return Plan(how, batch, wait=rng.uniform(0, 3 * seconds / BATCHES))
    if how == "file":
        return Plan(how, batch, size=rng.choice([0, 1, rng.randrange(40_000), rng.randrange(4_000_000)]))
    if rng.random() < 0.7:
        wait = rng.choice([0, rng.uniform(1e-6, 5e-4), rng.uniform(5e-4, 0.01)])
        return Plan(how, batch, wait=wait, count=rng.randrange(1, 25), where="checkpoints")
    return Plan(how, batch, count=rng.randrange(1, 10))


def options_of(rng: random.Random, model: str, workers: int, number: int) -> dict[str, Any]:
    """The training of a round; synchronous and asynchronous saving take turns."""
    return {
        "model": model,
        "workers": workers,
        "seed": rng.randrange(1 << 16),
        "asynchronous": bool(number % 2),
        "averaging": rng.choice(["swa", "ema"]),
        "save_last": rng.choice([True, "link"]),
        "every_seconds": rng.choice([None, 0.02]),
        "patience": rng.choice([2, EPOCHS * 2]),
    }


def hit(folder: Path, life: Life) -> str:
    """What the training was doing when it was killed, as its files say."""
    touched = next((line.split()[1:] for line in life.told if line.startswith("touched")), [])
    if any("checkpoints" in path for path in (*map(str, temporaries(folder)), *touched)):
        return "in a save"
    if touched or temporaries(folder):
        return "in another file"
    if not list(folder.rglob("*.ckpt")):
        return "before the first save"
    return "after the last batch" if life.last("step") >= BATCHES else "between saves"


def check_files(folder: Path, where: str, figures: Figures) -> None:
    """Every checkpoint whose name exists can be read."""
    for path in folder.rglob("*.ckpt"):
        if path.name.startswith("."):
            continue
        try:
            read_checkpoint(path)
        except CheckpointError as error:
            figures.problems.append(f"{where}: {error}")


def check_life(life: Life, floor: int, where: str, figures: Figures) -> int:
    """What must hold after each start, whatever its end was; the batches that are safe from now on."""
    begun = life.last("start", -1)
    if begun >= 0:
        if begun < floor:
            figures.problems.append(f"{where}: began at batch {begun}, and {floor} were saved")
        left = next(line.split()[1:] for line in life.told if line.startswith("leftovers"))
        if left:
            figures.problems.append(f"{where}: left behind: {left}")
    if life.status == 0 and life.told[-1] != "done":
        figures.problems.append(f"{where}: ended without a report")
    if life.status not in (0, *KILLED):
        figures.problems.append(f"{where}: ended with status {life.status}: {life.output}")
    if time.monotonic() - life.began > LIMIT:
        figures.problems.append(f"{where}: hangs: {life.output}")
    return max(floor, life.last("saved"))


def run_round(rng: random.Random, options: dict[str, Any], kills: int, folder: Path, figures: Figures) -> None:
    """One training that is killed so many times, if it does not end before, and its uninterrupted twin."""
    whole = Life(options, made(folder / "whole"), Plan("never"))
    whole.live()
    whole.listen(0)
    seconds, where = time.monotonic() - whole.began, f"{json.dumps(options)}, whole"
    check_life(whole, 0, where, figures)
    whole.close()
    figures.rounds += 1
    if figures.problems:
        return
    cut, floor, reached = made(folder / "cut"), 0, 0
    for number in range(kills + 1):
        plan = plan_of(rng, floor, kills - number, seconds) if number < kills else Plan("never")
        where = f"{json.dumps(options)}, life {number}, {plan}"
        life = Life(options, cut, plan)
        life.live()
        life.listen(0)
        figures.lives += 1
        floor = check_life(life, floor, where, figures)
        begun = life.last("start", -1)
        if begun >= 0 and number:
            figures.lost_batches += max(0, reached - begun)
            figures.worst_lost_batches = max(figures.worst_lost_batches, reached - begun)
        reached = max(life.last("step"), begun, 0) if begun >= 0 else reached
        life.close()
        if life.status == 0 or figures.problems:
            break
        figures.kills += 1
        figures.how[plan.how] += 1
        figures.where[hit(cut, life)] += 1
        figures.progress[min(9, 10 * reached // BATCHES)] += 1
        figures.touched.update(line.split()[1] for line in life.told if line.startswith("touched"))
        check_files(cut, where, figures)
    if not figures.problems:
        check_files(cut, where, figures)
        figures.problems.extend(f"{json.dumps(options)}: {each}" for each in differences(folder / "whole", cut))


def made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def drive(kills: int, seed: int, workers: int, model: str, folder: Path, per_round: int = KILLS_PER_ROUND) -> Figures:
    """Rounds until there were so many kills, or something is wrong. The folder of a round in which nothing is wrong goes."""
    rng, figures = random.Random(f"{seed} {workers} {model}"), Figures()
    while figures.kills < kills and not figures.problems:
        options = options_of(rng, model, workers, figures.rounds)
        place = folder / f"round{figures.rounds}"
        run_round(rng, options, min(per_round, kills - figures.kills), place, figures)
        if not figures.problems:
            shutil.rmtree(place)
    return figures


# ---- The program


def adopt_orphans() -> None:
    """Workers of a killed child become children of this process, which can then wait for their end."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def end_orphans(seconds: float) -> int:
    """Loader workers end by themselves when their trainer is gone; how many have not after a time, and were killed here.

    One that was forked just as its trainer was killed takes whoever adopts it for its trainer, and waits for ever. That is
    PyTorch's, and rare. It holds no file of a training.
    """
    until, killed = time.monotonic() + seconds, set()
    while time.monotonic() < until + 5:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.05)
        except ChildProcessError:
            return len(killed)
        if time.monotonic() > until:
            for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
                killed.add(pid)
                os.kill(int(pid), signal.SIGKILL)
    raise TimeoutError(f"these children cannot be killed: {killed}")


def report(figures: Figures) -> str:
    """For people."""
    in_tenths = " ".join(str(figures.progress.get(tenth, 0)) for tenth in range(10))
    return "\n".join(
        [
            f"{figures.kills} kills in {figures.rounds} trainings, {figures.lives} starts",
            f"aimed by: {dict(figures.how.most_common())}",
            f"hit: {dict(figures.where.most_common())}",
            f"by tenth of the training: {in_tenths}",
            f"right before, or a moment after: {dict(figures.touched.most_common())}",
            f"batches done again: {figures.lost_batches} in all, {figures.worst_lost_batches} at most",
            f"orphaned workers that had to be killed: {figures.orphans}",
            *(f"WRONG: {problem}" for problem in figures.problems[:5]),
            *([f"and {len(figures.problems) - 5} more"] if len(figures.problems) > 5 else []),
            "something was lost" if figures.problems else "nothing was lost",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--model", default="mlp")
    parser.add_argument("--per-round", type=int, default=KILLS_PER_ROUND, help="kills of one training")
    parser.add_argument("--folder", type=Path, help="where to train; kept if something is wrong")
    given = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*fork.*")  # no thread of this process holds a lock
    assert fulmen_precision.mixed and fulmen_swa.ema and fulmen_swa.swa and torch._dynamo
    torch.set_num_threads(1)
    adopt_orphans()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="fulmen-kills-"))
    figures = drive(given.kills, given.seed, given.workers, given.model, folder.resolve(), given.per_round)
    figures.orphans = end_orphans(12)
    if not figures.problems and given.folder is None:
        shutil.rmtree(folder)
    print(report(figures))
    print(json.dumps(vars(figures)))
    return bool(figures.problems)


if __name__ == "__main__":
    sys.exit(main())
