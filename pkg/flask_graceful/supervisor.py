"""The process whose pid never changes: it holds the listeners, and serves nothing.

Owns the life of the service, from its first worker to its last: what signals mean, what workers say
and how they end, and the order of a stop. Run as a program of its own, `python -m
flask_graceful.supervisor`, by `reexec` in the process that is to become it.

Strategy: a worker is the user's own command, started anew; it loads the application, asks for its
listeners, and waits for the word to accept. One loop, and signals are events in it.

Rules: neither the application nor Flask nor the server is ever imported here, so nothing that is
wrong with them can hurt it. Only this process speaks to systemd.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import typing as t
from functools import partial

from . import reexec
from .child import END_TIME, how_it_ended
from .control import ControlError
from .ending import Ending
from .history import History
from .loop import Loop, Timer
from .notify import Notifier
from .office import Office
from .origin import Origin
from .output import Streams
from .pidfile import PidFile
from .reload import Reload
from .replacement import Replacement
from .signals import Signals
from .staff import KILL_TIME, Asking, Duty, Worker
from .team import Team

log = logging.getLogger("flask_graceful")

SIGNALS = {
    int(getattr(signal, name)): name
    for name in (
        "SIGHUP SIGINT SIGTERM SIGQUIT SIGUSR1 SIGUSR2 SIGTTIN SIGTTOU SIGCHLD SIGTSTP".split()
    )
    if hasattr(signal, name)
}
# Those that the hooks of the application may wait for.
_FOR_HOOKS = {"SIGHUP", "SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGTSTP"}
NO_ORIGIN = [0, 0, []]


class Supervisor:
    """:param state: what `reexec` has left: of the process that was to become it, or of itself."""

    def __init__(self, state: dict[str, t.Any]) -> None:
        self.loop = Loop()
        self.signals = Signals(SIGNALS)
        self.team = Team(state["team"], self.loop)
        self.notifier = Notifier(state["notify"])
        self.history = History(state.get("restarts", ()))
        self._origin = Origin(*state["origin"])
        self._streams = Streams(*state["streams"])
        for fd in self._streams.fds():
            os.set_inheritable(fd, False)
        self.reload = Reload(self)
        self._replacement = Replacement(self)
        self.ending = Ending(self)
        self.office = Office(self, state["office"])
        self.reload.waiting = [*self.office.waiting, *self._asking(state.get("asking", ()))]
        self._acts = self._make_acts()
        self._exit_status = 0
        self._pid_file = PidFile("")
        self._watchdog_timer = Timer(self._watchdog)
        self._set_log_level()

    def _make_acts(self) -> dict[str, t.Callable[[Worker, dict[str, t.Any]], object]]:
        """What is done when a worker says something, by the word for it."""
        return {
            "wishes": self._on_wishes,
            "ready": self._on_ready,
            "answer": self.office.on_answer,
            "forlorn": lambda worker, said: self._replacement.on_forlorn(worker),
            "consent": self._on_consent_of,
            "replace": lambda worker, said: self._replacement.on_wish(worker, said["replace"]),
            "reload": self._on_reload,
            "stop": self._on_stop,
            "moved": lambda worker, said: self.history.move(worker.generation, said["moved"]),
        }

    @property
    def is_stopping(self) -> bool:
        """Is the service to end?"""
        return self.ending.is_begun

    def record(self) -> tuple[dict[str, t.Any], list[int]]:
        """All that the program needs to go on where this one stops, and the descriptors in it."""
        state = {
            "team": self.team.record(),
            "notify": self.notifier.variables,
            "origin": NO_ORIGIN,
            "streams": self._streams.record(),
            "office": self.office.record(),
            "restarts": self.history.record(),
            "asking": [
                (one.worker.pid, one.number)
                for one in self.reload.waiting
                if isinstance(one, Asking)
            ],
        }
        return state, [*self.team.fds(), *self._streams.fds(), *self.office.fds()]

    def run(self) -> int:
        """Serve until a signal ends it; the exit status."""
        with self.signals:
            self.loop.watch(self.signals.fileno(), self._on_signals)
            reexec.unblock_signals()
            self._streams.restore()
            if not self._origin.is_there:
                self._streams.watch(self.loop)
            self._name_pid_file()
            for worker in list(self.team.workers):
                self.loop.watch_channel(worker.channel, partial(self._listen, worker))
            self.office.open()
            self._watchdog()
            self.reload.begin()
            # Those that ended, and what was said, while nobody looked.
            self._reap()
            for worker in list(self.team.workers):
                self._listen(worker)
            while self.team.workers or not self.is_stopping:
                self.loop.turn()
            self.signals.ignore()
        self.team.close()
        self.office.close()
        self._pid_file.remove()
        log.info("%d Supervisor ends.", os.getpid())
        return self._exit_status

    # Signals.

    def _on_signals(self) -> None:
        for signum in self.signals.read():
            try:
                self._act(SIGNALS[signum], signum)
            except Exception:
                # The service is to go on, whatever is wrong here.
                log.exception("%d %s failed", os.getpid(), SIGNALS[signum])

    def _act(self, name: str, signum: int) -> None:
        if name == "SIGCHLD":
            self._reap()
            return
        log.info("%d Received %s.", os.getpid(), name)
        if name in _FOR_HOOKS:
            self.team.tell(Duty.SERVING, {"signal": signum})
        if name == "SIGHUP":
            self.reload.ask()
        elif name in ("SIGTERM", "SIGINT"):
            self.ending.stop()
        elif name == "SIGQUIT":
            self.ending.stop_at_once()
        elif name == "SIGUSR2":
            self.team.tell(Duty.DRAINING, {"hammer": True})
        elif name in ("SIGTTIN", "SIGTTOU"):
            self._replacement.resize(1 if name == "SIGTTIN" else -1)

    # Workers.

    def welcome(self, worker: Worker) -> None:
        """A worker has been started."""
        worker.watch_output(self.loop)
        self.loop.watch_channel(worker.channel, partial(self._listen, worker))

    def _listen(self, worker: Worker) -> None:
        """A worker has said something, or is gone."""
        if worker not in self.team.workers:
            return
        is_open = worker.listen()
        self._heed_all(worker)
        if worker not in self.team.workers:
            return
        if is_open:
            self.loop.rearm(worker.channel)
            return
        self.loop.unwatch(worker.channel.fileno())
        # How it has ended is known in a moment.
        worker.end_timer.func = partial(self._on_silence, worker)
        self.loop.set(worker.end_timer, END_TIME)

    def _on_silence(self, worker: Worker) -> None:
        """A worker has closed its channel, and lives: other threads of it do, for a time."""
        worker.end_timer.func = worker.end_by_force
        self.loop.set(worker.end_timer, self.team.settings["hammer_time"] or KILL_TIME)
        if worker.duty is Duty.SERVING:
            worker.duty = Duty.DRAINING
            how = "has ended its service"
            if not self.reload.on_death(worker, how):
                self._replacement.on_death(worker, how)

    def _heed_all(self, worker: Worker) -> None:
        for said in worker.take_said():
            self._heed(worker, said)

    def _heed(self, worker: Worker, said: dict[str, t.Any]) -> None:
        for word, act in self._acts.items():
            if word in said:
                act(worker, said)

    def _on_wishes(self, worker: Worker, said: dict[str, t.Any]) -> None:
        self.reload.on_wishes(worker)
        self.team.provide(worker)

    def _on_ready(self, worker: Worker, said: dict[str, t.Any]) -> None:
        worker.end_boot()
        if self.reload.turnover is not None and self.reload.turnover.awaits(worker):
            self.reload.advance()
        elif worker.duty is Duty.READY:
            self._replacement.on_ready(worker)

    def _on_consent_of(self, worker: Worker, said: dict[str, t.Any]) -> None:
        self.reload.consent.on_answer(worker, said)
        self.ending.consent.on_answer(worker, said)

    def _on_reload(self, worker: Worker, said: dict[str, t.Any]) -> None:
        log.info("%d Worker %d asks for a reload.", os.getpid(), worker.pid)
        self.reload.ask(Asking(worker, said["reload"]))

    def _asking(self, known: t.Iterable[tuple[int, int]]) -> t.Iterator[Asking]:
        """Those workers that wait for the reload that the program before this one has begun."""
        for pid, number in known:
            worker = self.team.find(pid)
            if worker is not None:
                yield Asking(worker, number)

    def _on_stop(self, worker: Worker, said: dict[str, t.Any]) -> None:
        log.info("%d Worker %d asks for a stop.", os.getpid(), worker.pid)
        if said["is_again"] or not self.is_stopping:
            self.ending.stop(said["stop"], is_agreed=True)

    def _reap(self) -> None:
        """See to every child that has ended; as pid 1 also to those of others."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            code = os.waitstatus_to_exitcode(status)
            worker = self.team.find(pid)
            if worker is not None:
                self._bury(worker, code)
            else:
                self.reload.on_child(pid, code)

    def _bury(self, worker: Worker, code: int) -> None:
        """A worker has ended, with this status or by this signal."""
        how = how_it_ended(code)
        # What it said last may still lie in the channel.
        worker.listen()
        self._heed_all(worker)
        self.loop.unwatch(worker.channel.fileno())
        self.loop.cancel(worker.end_timer)
        worker.end_boot()
        self.team.remove(worker)
        self._look_for_old()
        self.reload.consent.on_death(worker)
        self.ending.consent.on_death(worker)
        self.office.on_death(worker)
        if self.reload.on_death(worker, how):
            pass
        elif worker.duty is Duty.DRAINING or self.is_stopping:
            what = "was given up" if worker.is_given_up else how
            # It may have had requests.
            level = logging.WARNING if code and not worker.is_given_up else logging.INFO
            log.log(level, "%d Worker %d %s.", os.getpid(), worker.pid, what)
            self.reload.advance()
        else:
            self._replacement.on_death(worker, how)
        self.reload.follow_up()

    def _look_for_old(self) -> None:
        """Is a restart over, with nothing left of the code before?"""
        self.history.end(min((one.generation for one in self.team.workers), default=0))

    # How a reload has ended.

    def on_generation(self) -> None:
        """The workers of this generation serve now, and the older ones are told to give way."""
        self.history.take_over()
        self._look_for_old()
        self._origin.give_way_to(self.team.on(Duty.SERVING)[0])
        self._streams.watch(self.loop)
        self._name_pid_file()
        self._set_log_level()
        self.office.open_again()
        self._limit_generations()

    def on_settled(self, pids: list[int]) -> None:
        """No older workers than these accept any more."""
        workers = "worker" if len(pids) == 1 else "workers"
        text = " ".join(map(str, pids))
        status = f"Generation {self.team.generation} serves with {workers} {text}"
        log.info("%d %s.", os.getpid(), status)
        if not self.is_stopping:
            self.notifier.ready(status)
        # Some may have died meanwhile.
        self._replacement.replace()

    def on_failed_start(self, reason: str, quotation: str) -> None:
        """The first workers do not come to serve: that is the end.

        :param quotation: what they have printed, to be shown below.
        """
        log.error("%d Start failed: %s.%s", os.getpid(), reason, quotation)
        self._exit_status = 1
        self.ending.is_begun = True

    def on_failure(self, reason: str, what: str) -> None:
        """New workers do not come to serve, in place of older ones.

        :param what: what this means, for the log.
        """
        self.history.fail(reason)
        log.error("%d Reload failed: %s; %s", os.getpid(), reason, what)
        if not self.is_stopping:
            self.notifier.ready(f"Reload failed: {reason}")
        self._replacement.replace()

    def _limit_generations(self) -> None:
        """The oldest workers cut what they have when there are too many generations of them."""
        draining = self.team.on(Duty.DRAINING)
        old = sorted({worker.generation for worker in draining})
        for worker in draining:
            if worker.generation in old[: -self.team.settings["old_generations"]]:
                worker.say({"hammer": True})

    def _watchdog(self) -> None:
        if self.notifier.watchdog_time:
            self.notifier.watchdog()
            self.loop.set(self._watchdog_timer, self.notifier.watchdog_time)

    def _name_pid_file(self) -> None:
        """The file that the code which serves asks for."""
        if not self.team.on(Duty.SERVING):
            return
        path = self.team.settings["pid_file"]
        if path != self._pid_file.path:
            self._pid_file.remove()
            self._pid_file = PidFile(path)
        self._pid_file.write_again()

    def _set_log_level(self) -> None:
        """What the code which serves has chosen for its own log. An older program does not say."""
        log.setLevel(self.team.settings.get("log_level", logging.INFO))


def main() -> t.NoReturn:
    """The program."""
    if sys.argv[1:2] == ["--version"]:
        sys.exit(0 if sys.argv[2:] == [reexec.VERSION] else 1)
    state = reexec.take_state(os.environ)
    if state is None:
        print("flask_graceful.supervisor is started by a server with workers", file=sys.stderr)
        sys.exit(2)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        status = Supervisor(state).run()
    except ControlError as error:
        print(f"flask_graceful: {error}", file=sys.stderr)
        status = 1
    sys.exit(status)


if __name__ == "__main__":
    main()
