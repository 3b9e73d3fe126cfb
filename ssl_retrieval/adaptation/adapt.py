"""From a folder of photos to a network that is no worse on them than the start, within a stated time."""

import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ssl_retrieval import checkpoint, config, devices, locking
from ssl_retrieval.adaptation import outcome as outcome_file
from ssl_retrieval.adaptation import photo_folder, rule, schedule, start_network, trial
from ssl_retrieval.adaptation.clock import Clock
from ssl_retrieval.adaptation.neighbours import Example, examples
from ssl_retrieval.adaptation.outcome import Outcome, Tried
from ssl_retrieval.adaptation.photo_folder import PhotoFolder
from ssl_retrieval.adaptation.plan import LEAST_PHOTOS, Pace, Setting, deeper, longer
from ssl_retrieval.adaptation.probe import Probe
from ssl_retrieval.adaptation.rule import Verdict
from ssl_retrieval.adaptation.schedule import Schedule
from ssl_retrieval.adaptation.signals import signals
from ssl_retrieval.adaptation.trial import Judge, Trial
from ssl_retrieval.atomic import atomic_path, require_writable
from ssl_retrieval.console import say
from ssl_retrieval.embed import EmbedConfig, run_embed
from ssl_retrieval.errors import UserError
from ssl_retrieval.evaluate import versions
from ssl_retrieval.export import export
from ssl_retrieval.images import report_skipped
from ssl_retrieval.packed import Packed
from ssl_retrieval.packing import pack
from ssl_retrieval.report.adapt_page import write_adapt_page
from ssl_retrieval.run_folder import read_json

WORK = "work"
"""Folder of what is of no use once the verdict stands."""


@dataclass(frozen=True)
class Job:
    """What is asked for; the same values in the same folder go on.

    Attributes:
        photos: Absolute path of the folder of photos.
        goal: What is searched for: ``similar`` or ``copies``, see `rule`.
        minutes: Time for everything.
        start: timm name.
        weights: As ``model.weights`` of a training.
        image_size: Side of the network's input in pixels.
        seed: Of everything.
    """

    photos: str
    goal: str
    minutes: float
    start: str
    weights: str
    image_size: int
    seed: int


def adapt(
    photos: str | Path,
    out: str | Path,
    *,
    goal: str = rule.SIMILAR,
    minutes: float = 10.0,
    start: str = Setting.start,
    weights: str = "auto",
    image_size: int = Setting.image_size,
    seed: int = 0,
    device: str = "auto",
) -> Outcome:
    """Adapt a network to unlabelled photos, and keep the start where that is no gain.

    The same call again goes on where it was stopped, and gives the outcome of a finished folder.

    Args:
        photos: Folder of images, subfolders included.
        out: Folder of the results: network, vectors, page, verdict.
        goal: What is to be found: ``similar`` (other photos of the same object or kind) or ``copies`` (the
            very photo, altered).
        minutes: Time for everything.
        start: timm name, or one of our checkpoints or runs.
        weights: Where the start's weights come from; ``auto`` = an installed package, else timm.
        image_size: Side of the network's input in pixels.
        seed: Of order, views and draws.
        device: ``auto``, ``cpu``, ``cuda``, ….

    Raises:
        UserError: No readable photo, a wrong path or value, or an ``out`` that holds something else.
    """
    if not 0 < minutes < 1e5:
        raise UserError(f"--minutes {minutes:g}: a time above 0 is needed, e.g. 10")
    if image_size < 32:
        raise UserError(f"--image-size {image_size}: must be at least 32")
    rule.check_goal(goal)
    folder, root = Path(out).expanduser().resolve(), Path(photos).expanduser().resolve()
    network, from_where = start_network.find(start, weights)
    job = Job(str(root), goal, float(minutes), network, from_where, image_size, seed)
    require_writable(folder)
    begun = time.monotonic()
    looked = photo_folder.look(root)
    refusal = f"{folder}: another process is adapting here: wait for its end, or use another out"
    with locking.hold(folder / ".lock", refusal):
        return _Adaptation(job, folder, device, looked).finish(begun)


class _Adaptation:
    """One adaptation, stage by stage; every stage leaves a file from which the next process goes on."""

    def __init__(self, job: Job, folder: Path, device: str, looked: PhotoFolder) -> None:
        self.job, self.folder, self.work, self.looked = job, folder, folder / WORK, looked
        self.device = devices.pick(device)
        self.notes = looked.in_words()

    def finish(self, begun: float) -> Outcome:
        """Do what is left to do.

        Args:
            begun: Reading of ``time.monotonic`` from which the time counts.
        """
        self._claim()
        done = outcome_file.read(self.folder)
        if done is not None:
            say(f"{self.folder}: already done; nothing to do")
            return done
        self.clock = Clock(self.work / "clock.json", 60 * self.job.minutes, begun)
        for sentence in self.notes:
            say(sentence)
        self.packed = self._pack()
        self.start = self.work / "start.safetensors"
        if not self.start.is_file():
            start_network.save(self.job.start, self.job.weights, self.job.image_size, self.start)
        return self._leave(*self._try())

    def _claim(self) -> None:
        """Store what is asked for; refuse to go on with anything else."""
        file = self.folder / "adapt.json"
        now = {**dataclasses.asdict(self.job), "key": self.looked.key}
        before = read_json(file)
        changed = [] if before is None else [name for name in now if before.get(name) != now[name]]
        if changed and before is not None:
            name = changed[0]
            what = (
                "other photos than those found now"
                if name == "key"
                else f"{name}={before.get(name)!r}, now it is {now[name]!r}"
            )
            raise UserError(f"{self.folder} holds an adaptation with {what}: use another out")
        if before is None:
            others = [path.name for path in self.folder.iterdir() if path.name != ".lock"]
            if others:
                raise UserError(f"{self.folder} holds files of others ({others[0]}): give a new folder")
            with atomic_path(file) as partial:
                partial.write_text(json.dumps(now, indent=1))

    def _pack(self) -> Packed:
        packed = pack(self.looked.distinct, self.job.image_size * 5 // 4, self.work / "photos.npy", "skip")
        report_skipped(packed.skipped, self.job.photos)
        self.clock.note()
        return packed

    def _try(self) -> tuple[list[Trial], Verdict, list[Tried]]:
        """Train candidates and have the rule choose."""
        count = len(self.packed.paths)
        if count < LEAST_PHOTOS:
            photos = "1 photo is" if count == 1 else f"{count} different photos are"
            reason = (
                f"keep the start: {photos} too few to learn from, and to tell by whether it helped "
                f"(at least {LEAST_PHOTOS} are needed)"
            )
            return [], Verdict(None, reason, {}), []
        judge = Judge(self.packed, self.work / "photos.npy", count, self.job.seed, self.device)
        planned = self._schedule(judge)
        self.notes.append(planned.why)
        judge = dataclasses.replace(judge, limit=planned.probe_photos)
        before = Probe.load(self.work / "start")
        if not planned.settings:
            reason = (
                f"keep the start: {self.job.minutes:g} minutes are too short to try anything on this "
                f"machine; give more --minutes"
            )
            return [], Verdict(None, reason, {}), []
        trials: list[Trial] = []
        comparison = rule.Comparison(before)

        def train(name: str, setting: Setting, place: str) -> None:
            made = self._trial(name, setting, place, judge, planned)
            if made is not None:
                trials.append(made)
                comparison.add(name, made.probe())

        for number, setting in enumerate(planned.settings, start=1):
            train(setting.name, setting, f"trial-{number}")
        verdict = comparison.verdict(self.job.goal)
        # What is best so far is tried through more layers, and what is best then with more steps.
        for place, further, suffix in (("deeper", deeper, ""), ("longer", longer, ", longer")):
            more = self._further(place, further, trials, verdict, planned)
            if more is not None:
                train(f"{more.name}{suffix}", more, place)
                verdict = comparison.verdict(self.job.goal)
        nothing = float("nan")
        tried = [
            Tried.of(made, verdict.scores.get(made.name, nothing), signals(before, made.probe()))
            for made in trials
        ]
        return trials, verdict, tried

    def _schedule(self, judge: Judge) -> Schedule:
        """Measure how fast it goes and decide what is tried; or read what was decided."""
        file = self.work / "schedule.json"
        stored = Schedule.load(file)
        if stored is not None:
            return stored
        job = self.job
        made = schedule.make(
            Setting(start=job.start, weights=job.weights, image_size=job.image_size, seed=job.seed),
            judge,
            self.start,
            self.work,
            goal=job.goal,
            deadline=time.monotonic() + self.clock.left_s,
            num_images=len(self.looked.images),
            decode_s=self.clock.spent_s / self.looked.num_drawn,
        )
        made.save(file)
        self.clock.note()
        say(made.why)
        say(f"judging a candidate by its photos takes {made.pace.probe_s:.0f} s")
        if made.settings:
            first = made.settings[0]
            say(
                f"a step of {first.batch_size} photos takes {first.batch_size * made.pace.image_s:.1f} s; "
                f"{self.clock.left_s / 60:.1f} minutes are left for {len(made.settings)} trainings of "
                f"{first.steps} steps: {'; '.join(setting.name for setting in made.settings)}"
            )
        return made

    def _trial(
        self, name: str, setting: Setting, place: str, judge: Judge, planned: Schedule
    ) -> Trial | None:
        """Make a candidate where there is time for it, or read it."""
        left_s, pace = self.clock.left_s - planned.reserve_s, planned.pace
        if not (self.work / place).exists() and left_s < pace.seconds(setting) * 0.7:
            self._note(f"Not tried, for the time was over: {name}.")
            return None
        say(f"{name}: {setting.steps} steps")
        deadline = time.monotonic() + left_s - pace.probe_s
        made = trial.run(name, setting, self.work / place, judge, deadline)
        if made.steps < setting.steps:
            self._note(
                f"{name} ended after {made.steps} of {setting.steps} steps: this machine was slower than at "
                "the beginning."
            )
        self.clock.note()
        return made

    def _further(
        self,
        place: str,
        further: Callable[[Setting, float, Pace], Setting | None],
        trials: list[Trial],
        verdict: Verdict,
        planned: Schedule,
    ) -> Setting | None:
        """Plan another training from the best candidate, or read what was planned."""
        best = next((made for made in trials if made.name == verdict.name), None)
        if best is None:
            return None
        file = self.work / f"{place}.json"
        stored = read_json(file)
        if stored is None:
            # By now it is known better than at the beginning how fast it goes.
            image_s = best.train_s / (best.steps * best.setting.batch_size)
            pace = dataclasses.replace(planned.pace, image_s=max(image_s, 1e-6))
            more = further(best.setting, self.clock.left_s - planned.reserve_s, pace)
            stored = {"setting": None if more is None else dataclasses.asdict(more)}
            with atomic_path(file) as partial:
                partial.write_text(json.dumps(stored))
        return None if stored["setting"] is None else Setting(**stored["setting"])

    def _leave(self, trials: list[Trial], verdict: Verdict, tried: list[Tried]) -> Outcome:
        """Write network, vectors, page and, last of all, the verdict."""
        chosen = next((made for made in trials if made.name == verdict.name), None)
        planned = Schedule.load(self.work / "schedule.json")
        embeds = planned is None or planned.embeds
        self._write_model(self.start if chosen is None else chosen.file, verdict)
        made = Outcome(
            folder=str(self.folder),
            photos=self.job.photos,
            goal=self.job.goal,
            chosen=verdict.name,
            reason=verdict.reason,
            start=self.job.start,
            weights=self.job.weights,
            tried=tuple(tried),
            notes=tuple(self.notes),
            skipped=self.packed.skipped,
            is_embedded=embeds,
            image_size=self.job.image_size,
            seed=self.job.seed,
            minutes=self.job.minutes,
            seconds=0.0,
            versions=versions(),
        )
        if embeds:
            run_embed(
                config.load(
                    EmbedConfig,
                    None,
                    settings={
                        "out": str(made.embeddings),
                        "device": str(self.device),
                        "data": {"name": "folder", "root": self.job.photos, "labels": "none"},
                        "model": {"name": "checkpoint", "path": str(made.model)},
                    },
                )
            )
        shown = self._examples(trials, chosen, tried)
        made = dataclasses.replace(made, seconds=round(self.clock.spent_s, 1))
        write_adapt_page(made, shown, Path(self.job.photos))
        made.write()
        shutil.rmtree(self.work, ignore_errors=True)
        return made

    def _write_model(self, file: Path, verdict: Verdict) -> None:
        """Write the network twice: as a checkpoint of ours, and as a folder that timm loads."""
        model, card, _ = checkpoint.load(file)
        card = dataclasses.replace(card, extra={"adapt": {"chosen": verdict.name, "reason": verdict.reason}})
        target = self.folder / outcome_file.MODEL
        checkpoint.save(model, card, target)
        export(target, self.folder / outcome_file.EXPORTED, "plain" if card.stem == "small" else "timm")

    def _examples(self, trials: list[Trial], chosen: Trial | None, tried: list[Tried]) -> list[Example]:
        """Look for what changed with the chosen network, or with the best of those that were not."""
        if not trials or len(self.packed.paths) < 2:
            return []
        scores = [-np.inf if one.score is None else one.score for one in tried]
        shown = chosen or trials[int(np.argmax(scores))]
        return examples(self.packed, self.start, shown.file, self.job.seed, self.device)

    def _note(self, sentence: str) -> None:
        self.notes.append(sentence)
        say(sentence)
