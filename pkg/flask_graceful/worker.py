"""The life of a worker: one of several processes that serve, started by a supervisor.

Owns this process's end of the channel to the supervisor, and what is done at its word.

Strategy: a worker is the user's command like any other serving process. Where that one binds its
addresses and starts its own successor, a worker asks the supervisor for its listeners, accepts when
it is told to, and gives way to the workers that it is told of.

Rules: signals that are meant for the service are the supervisor's. A worker that gets them with all
others, from a terminal or by `pkill`, does nothing. SIGTERM to a worker alone has it replaced.
When the supervisor has died, which the kernel tells by the end of the channel, a worker finishes
its requests and ends.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import socket
import time
import typing as t

from .census import census, running
from .channel import Channel, ChannelError, Record
from .heirs import Heirs
from .hooks import POST_SIGNAL, PRE_SIGNAL, SIGNALS
from .life import Life, State
from .listeners import Listener, ListenError, known_everywhere
from .loop import Reason, Tell, Timer, to_nobody
from .pidfile import PidFile, PidFileError
from .predecessor import Predecessors
from .shares import NAME, Shares

if t.TYPE_CHECKING:
    from .inheritance import Inheritance
    from .listeners import Address
    from .restart import GracefulServer
    from .signals import Signals

log = logging.getLogger("flask_graceful")

# The most that the supervisor may take to bind an address, in seconds.
ANSWER_TIME = 30.0
# How long it may take to say that it has got a signal, too; in seconds.
ECHO_TIME = 0.5

_QUIT = getattr(signal, "SIGQUIT", None)


# What a terminal sends to all processes of a service is not to end this one.
_HANDLED = {**SIGNALS, **({int(_QUIT): "SIGQUIT"} if _QUIT else {})}


class WorkerLife(Life):
    """See `Life`."""

    signals = _HANDLED
    _supervisor: Channel | None = None
    _generation = 0

    def __init__(self, servers: t.Sequence[GracefulServer]) -> None:
        super().__init__(servers)
        self._departures = self._heirs = Heirs(self, self._loop)
        self._predecessor = Predecessors(self, self._loop)
        # Signals to this process, and when the supervisor had the same.
        self._signalled: set[int] = set()
        self._echoes: dict[int, float] = {}
        self._echo_timer = Timer(self._on_own_signals)
        # Who waits for the end of a reload, by the number of the question.
        self._tellers: dict[int, Tell] = {}
        self._asked = 0
        # Has the supervisor said so?
        self._accepts = False
        # Has this process asked for a stop?
        self._wants_stop = False
        # What the supervisor says, by the word for it.
        self._acts: dict[str, t.Callable[[Record], object]] = {
            "predecessor": self._on_predecessor,
            "go": lambda record: self._start_accepting(),
            "heirs": self._on_heirs,
            "resume": self._on_resume,
            "delay": lambda record: self._begin_delay(),
            "stop": lambda record: self._stop(record.data["stop"]),
            "hammer": lambda record: self._hammer(),
            "signal": self._on_signal,
            "consult": self._on_consult,
            "ask": self._on_question,
            "limit": lambda record: self.limit(record.data["limit"]),
            "refused": self._on_refused,
        }

    @property
    def generation(self) -> int:
        return self._generation

    def _acquire(self, addresses: dict[Address, float], inherited: Inheritance) -> list[Listener]:
        """Ask the supervisor for them."""
        assert inherited.parent is not None and inherited.worker is not None
        self._generation = inherited.worker["generation"]
        shares = Shares(inherited.files.pop(NAME), inherited.worker["slot"])
        for server in self._servers:
            server.shares = shares
        self._supervisor = inherited.parent[0]
        self._say({"wishes": self._wishes(addresses)})
        try:
            record = self._supervisor.receive(time.monotonic() + ANSWER_TIME)
        except (TimeoutError, ChannelError) as error:
            raise ListenError(None, f"the supervisor gives no listeners: {error}") from error
        if record is None:
            raise ListenError(None, "the supervisor has ended")
        if "pid_file_error" in record.data:
            raise PidFileError(None, record.data["pid_file_error"])
        if "error" in record.data:
            raise ListenError(None, record.data["error"])
        listeners = [
            Listener(socket.socket(fileno=fd), name, name, is_ours=False)
            for name, fd in zip(record.data["given"], record.fds, strict=False)
        ]
        if len(listeners) < len(addresses):
            raise ListenError(None, "can't take the listeners: too many open files")
        return listeners

    def _wishes(self, addresses: t.Iterable[Address]) -> dict[str, t.Any]:
        """What the supervisor is to know of this code."""
        return {
            "addresses": [known_everywhere(one) for one in addresses],
            "settings": {
                **dataclasses.asdict(self.settings),
                "pid_file": PidFile(self.settings.pid_file).path,
                # Theirs who asked for silence, or for more.
                "log_level": log.getEffectiveLevel(),
            },
            "may_refuse": {
                "restart": any(server.may_refuse_restart for server in self._servers),
                "stop": any(server.may_refuse_stop for server in self._servers),
            },
        }

    def _announce(self, inherited: Inheritance) -> None:
        """Tell the supervisor, which says when to accept."""
        channel = self._supervisor
        assert channel is not None
        self._say({"ready": self._listening()})
        self._loop.watch_channel(channel, self._listen)
        self._listen()

    def _start_accepting(self) -> None:
        self._accepts = True
        # The supervisor has heard that it is ready.
        self.see_to_streams()
        super()._start_accepting()

    def _log_end(self) -> None:
        """The listeners are the supervisor's, and so is the word about them."""

    def _say(self, data: dict[str, t.Any]) -> None:
        if self._supervisor is None:
            return
        try:
            self._supervisor.send(data)
        except OSError:
            # It is gone, which is noticed where its channel is read.
            pass

    # What the supervisor says.

    def _listen(self) -> None:
        channel = self._supervisor
        if channel is None:
            return
        try:
            is_open = channel.read(self._heed)
        except ChannelError as error:
            log.error("%d Supervisor: %s", os.getpid(), error)
            is_open = False
        if is_open:
            channel.push()
            self._loop.rearm(channel)
        else:
            self._lose_supervisor(channel)
        self.look()

    def _heed(self, record: Record) -> None:
        for word, act in self._acts.items():
            if word in record.data:
                act(record)

    def _on_predecessor(self, record: Record) -> None:
        for fd in record.fds:
            channel = Channel(socket.socket(fileno=fd))
            self._predecessor.attend(channel, record.data["predecessor"])

    def _on_heirs(self, record: Record) -> None:
        channels = [Channel(socket.socket(fileno=fd)) for fd in record.fds]
        self._give_way(channels, record.data["heirs"])

    def _on_resume(self, record: Record) -> None:
        self.resume()
        self._heirs.forget_all()

    def _on_signal(self, record: Record) -> None:
        self._echoes[record.data["signal"]] = time.monotonic()
        for when in (PRE_SIGNAL, POST_SIGNAL):
            self._run_signal_hooks(when, record.data["signal"])

    def _on_consult(self, record: Record) -> None:
        what = record.data["consult"]
        self._say({"consent": what, "reason": self._why_not(what)})

    def _on_question(self, record: Record) -> None:
        what = record.data["ask"]
        answer: t.Any
        if "requests" in what:
            answer = running(self._servers, what["requests"])
        else:
            answer = census(self._servers, self.moved)
        self._say({"answer": answer, "number": record.data["number"]})

    def _on_refused(self, record: Record) -> None:
        tell = self._tellers.pop(record.data["number"], to_nobody)
        tell(Reason.of(record.data["refused"], record.data["lines"]))

    def _give_way(self, channels: list[Channel], listening: dict[str, bool]) -> None:
        """Let connections go to other workers, from now on or instead of to former ones."""
        if self.state not in (State.RUNNING, State.RELIEVED) or self._heirs.is_past:
            for channel in channels:
                channel.close()
            return
        self._heirs.name(channels)
        if self.state is State.RUNNING:
            self._relieve(listening)
        self._answer_all("")

    def _begin_delay(self) -> None:
        """The service is about to end: serve on, and let the application say so."""
        self.service_ends = State.DELAYING
        if self.state is State.RUNNING:
            self.state = State.DELAYING

    def _stop(self, timeout: float | None) -> None:
        """The service ends.

        :param timeout: seconds, instead of the setting; 0: any time.
        """
        if timeout is not None:
            self._hammer_time = timeout
        self.service_ends = State.SHUTTING_DOWN
        if self.state in (State.RUNNING, State.DELAYING):
            self._shut_down()
        elif self.is_relieved:
            self._heirs.forget_all()
            self.end_succession(is_over=True)
            self._loop.set(self._hammer_timer, self._hammer_time)

    def ask_for_heirs(self) -> None:
        """Those that took over are gone."""
        self._say({"forlorn": True})

    def _why_not(self, what: str) -> str:
        """Why a hook objects to a restart or a stop; empty when none does."""
        if what == "stop":
            return "" if self._may_stop() else "refused by before_shutdown hook"
        return next(filter(None, (server.why_no_restart() for server in self._servers)), "")

    def _answer_all(self, reason: str) -> None:
        tellers, self._tellers = self._tellers, {}
        for tell in tellers.values():
            tell(reason)

    def _lose_supervisor(self, channel: Channel) -> None:
        self._loop.unwatch(channel.fileno())
        channel.close()
        self._supervisor = None
        log.error("%d The supervisor has ended; so does this worker.", os.getpid())
        self._answer_all("the supervisor has ended")
        self._stop(None)

    # What this process asks for.

    def _on_signals(self, signals: Signals) -> None:
        self._signalled.update(signals.read())
        self._loop.set(self._echo_timer, ECHO_TIME)

    def _on_own_signals(self) -> None:
        """See to those that the supervisor has not got as well."""
        signalled, self._signalled = self._signalled, set()
        since = time.monotonic() - 2 * ECHO_TIME
        alone = {one for one in signalled if self._echoes.get(one, 0) < since}
        if signal.SIGTERM in alone:
            self.replace_because("it has received SIGTERM")
        elif signal.SIGHUP in alone and self.state is State.RUNNING:
            log.warning(
                "%d Received SIGHUP, which is for the supervisor: kill -1 %d restarts the service.",
                os.getpid(), os.getppid(),
            )  # fmt: skip

    def replace_because(self, reason: str) -> None:
        if self.state is State.RUNNING:
            self._say({"replace": reason})

    def restart(self, tell: Tell = to_nobody) -> None:
        self._asked += 1
        self._tellers[self._asked] = tell
        self._say({"reload": self._asked})

    def restart_for(self, record: Record) -> None:
        for fd in record.fds:
            # Who waits there is told so by the end of the connection.
            os.close(fd)
        self.restart()

    def stop_as_told(self, timeout: float | None, tell: Tell = to_nobody) -> None:
        if self.state is State.RUNNING and not self._may_stop():
            tell("refused by before_shutdown hook")
            return
        # That another worker asks as well is no reason to hurry.
        is_again, self._wants_stop = self._wants_stop, True
        self._say({"stop": timeout, "is_again": is_again})

    def stop_with_others(self) -> None:
        """An older process says so that knows of no supervisor."""
        self._say({"stop": None, "is_again": False})

    def forget_parent(self) -> None:
        # Before it accepts it does not know of all of them: the first may be gone by then.
        if self._accepts and not self._predecessor.is_there:
            super().forget_parent()

    def _clean_up(self) -> None:
        if self._supervisor is not None:
            if self._departures.arrived:
                self._say({"moved": self._departures.arrived})
            # First: what is waited for is the last thing that it hears.
            self._loop.unwatch(self._supervisor.fileno())
        super()._clean_up()
        if self._supervisor is not None:
            self._supervisor.close()
