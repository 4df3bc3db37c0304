"""From one process to the next: restarts, and the connections that move.

Owns the successor while this process lives: its boot, its word that it is ready, what it is sent,
and what follows from its death.

Strategy: `restart` starts a successor. When it is ready and this process is told to stop, `life`
has the servers give their connections here; they wait until the loop's thread takes them to the
successor. Whatever ends this early ends as if it had not begun: who asked is told why, and what
was not delivered comes back.

Rules: one boots at a time, and a restart asked for meanwhile is carried out afterwards, by the
process that serves then. When a successor dies that nobody has succeeded, this process serves
again.
"""

from __future__ import annotations

import logging
import os
import time
import typing as t
from functools import partial

from .channel import CAN_PASS
from .child import quoted
from .deadlines import NEVER
from .departures import Departures
from .loop import Reason, Timer, to_all, to_nobody
from .successor import Successor

if t.TYPE_CHECKING:
    from .loop import Loop, Tell
    from .sole import SoleLife

log = logging.getLogger("flask_graceful")

# How long a signal may be on its way when its sender has died, in seconds.
SIGNAL_TIME = 1.0


class Succession(Departures):
    """The loop's thread's, but for what `Departures` names."""

    _life: SoleLife

    def __init__(self, life: SoleLife, loop: Loop) -> None:
        super().__init__(life, loop)
        self.successor: Successor | None = None
        # How many processes have taken over since the successor did.
        self.generations = 0
        self._wants_restart = False
        # Who waits for the end of the restart, and of the one that follows.
        self._tell: Tell = to_nobody
        self._followers: list[Tell] = []
        # Until when a SIGTERM is the successor's.
        self._claims_until = 0.0
        self._boot_timer = Timer(self._on_boot_timeout)

    @property
    def has_relief(self) -> bool:
        """Is there a successor that serves?"""
        one = self.successor
        return one is not None and one.is_ready and not one.is_leaving

    def see_off(self) -> None:
        """Send what waits here; without a successor it comes back."""
        successor = self.successor
        while self._departing:
            parcel = self._departing.popleft()
            if successor is None or not successor.is_ready or self.is_past:
                self._take_back([parcel])
            else:
                successor.sender.put(parcel)
        if successor is not None:
            successor.push()
            self._loop.rearm(successor.channel)

    def claims_signal(self) -> bool:
        """Is the SIGTERM that has come the one that the successor sends when it serves? Once.

        It may have died since, and its signal is not to stop this process.
        """
        # Its word may still lie in the channel: it sends the signal right after it.
        self.listen()
        until, self._claims_until = self._claims_until, 0.0
        return time.monotonic() < until

    # The boot.

    def restart(self, tell: Tell, can_wait: bool = False) -> None:
        """Start a successor, or have it started when that is possible.

        :param tell: takes the reason when there will be none now, "" when it has taken over.
        :param can_wait: when it is not possible now, it is told how that ends which follows.
        """
        if self.successor is not None and self.has_relief and not self._life.is_stopping:
            # This process is on its way out, or about to be; who serves now is the one to restart.
            self._pass_on(self.successor, [tell])
        elif self._life.is_stopping or self._life.is_relieved:
            self._refuse(logging.INFO, "the server is shutting down", tell)
        elif os.getpid() == 1:
            # When it ends, the system ends every other process, the successor too.
            what = "as pid 1 this process can't hand over to another one"
            self._refuse(logging.ERROR, what, tell)
        elif not CAN_PASS:
            what = "listening sockets can't be handed to another process on this system"
            self._refuse(logging.ERROR, f"{what}; a restart needs Unix", tell)
        elif self.successor is not None:
            log.info("%d A restart is under way; another one follows it.", os.getpid())
            self._wants_restart = True
            if can_wait:
                self._followers.append(tell)
            else:
                tell("a restart is under way; another one follows it")
        else:
            self._spawn(tell)

    def _pass_on(self, successor: Successor, tells: t.Sequence[Tell]) -> None:
        """Have a successor that serves do it, and answer those who can wait there."""
        reason = f"process {successor.pid} serves now, and was told to restart"
        successor.restart(*self._life.desk.part_with(tells, reason))

    def _take_followers(self) -> list[Tell]:
        self._wants_restart = False
        followers, self._followers = self._followers, []
        return followers

    def answer(self, reason: str) -> None:
        """Tell who has asked for the restart that it has ended, once.

        :param reason: why it has failed; empty: the successor has taken over.
        """
        tell, self._tell = self._tell, to_nobody
        tell(reason)

    def _refuse(self, level: int, reason: str, tell: Tell) -> None:
        log.log(level, "%d Not restarted: %s.", os.getpid(), reason)
        tell(reason)

    def _spawn(self, tell: Tell) -> None:
        self.is_past = False
        self.generations = 0
        history = self._life.desk.history
        history.begin(self._life.generation + 1)
        reason = self._life.why_no_restart()
        if reason:
            history.fail(reason)
            tell(reason)
            return
        try:
            self.successor = self._life.make_successor()
        except (OSError, ValueError) as error:
            reason = f"can't start the successor: {error}"
            history.fail(reason)
            log.error("%d Restart failed: %s", os.getpid(), reason)
            tell(reason)
            return
        self._tell = tell
        self.successor.watch_output(self._loop)
        self._loop.watch_channel(self.successor.channel, self.listen)
        self._loop.set(self._boot_timer, self._life.settings.boot_timeout)

    def _on_boot_timeout(self) -> None:
        successor = self.successor
        if successor is not None and not successor.is_ready:
            log.error(
                "%d Successor %d was not ready after %g seconds; killing it.",
                os.getpid(), successor.pid, self._life.settings.boot_timeout,
            )  # fmt: skip
            successor.kill()

    def _end_boot(self, successor: Successor) -> list[str]:
        self._loop.cancel(self._boot_timer)
        return successor.close_output()

    # What the successor says.

    def listen(self) -> None:
        """The successor has said something, or is gone."""
        successor = self.successor
        if successor is None:
            return
        was_ready = successor.is_ready
        is_alive = successor.listen()
        if successor.is_ready and not was_ready:
            self._end_boot(successor)
            self._claims_until = NEVER
            if self._wants_restart:
                self._pass_on(successor, self._take_followers())
        self._heed(successor)
        self._answer_questions(successor)
        if self.successor is successor:
            if is_alive:
                self._loop.rearm(successor.channel)
            else:
                self._lose(successor)
        self._life.look()

    def _heed(self, successor: Successor) -> None:
        """See to what the successor could not take, wants, and tells of its own end."""
        self._note_arrivals(successor.sender.take_delivered())
        refused, successor.refused = successor.refused, []
        self._take_back(refused)
        if successor.asks:
            successor.asks = False
            self._claims_until = 0.0
            self._life.give_way()
        if successor.is_leaving and not self.is_past:
            self.is_past = True
            self._life.end_succession(is_over=True)
            self._take_back(successor.sender.take_back_waiting())
        elif successor.succeeded != self.generations:
            self.generations = successor.succeeded
            self._life.grow_older(self.generations)

    def _answer_questions(self, successor: Successor) -> None:
        questions, successor.questions = successor.questions, []
        for one in questions:
            self._life.desk.inquire(one["ask"], partial(self._reply, successor, one["number"]))

    def _reply(self, successor: Successor, number: int, answer: list[t.Any]) -> None:
        if self.successor is successor:
            successor.say({"answer": answer, "number": number})
            self._loop.rearm(successor.channel)

    def _lose(self, successor: Successor) -> None:
        """The successor is gone."""
        self._loop.unwatch(successor.channel.fileno())
        self.successor = None
        pid, new = os.getpid(), successor.pid
        if self._claims_until == NEVER:
            self._claims_until = time.monotonic() + SIGNAL_TIME
        returned = successor.sender.take_back()
        if not successor.is_ready:
            lines = self._end_boot(successor)
            how = f"successor {new} {successor.reap()}"
            log.error(
                "%d Restart failed: %s; this process goes on serving.%s",
                pid, how, quoted([] if successor.is_seen else lines),
            )  # fmt: skip
            self._life.desk.history.fail(how)
            self._life.resume()
            self.answer(Reason.of(how, lines))
        elif self.is_past or self.generations:
            # It took over, and has been replaced or stopped since.
            if not self.is_past:
                self.is_past = True
                self._life.end_succession(is_over=False)
        else:
            self._life.resume()
        self._take_back(returned)
        if successor.is_ready:
            how = successor.reap()
            self.answer(f"successor {new} {how}")
            if self.is_past or self._life.is_stopping:
                log.info("%d Successor %d %s.", pid, new, how)
            else:
                self._life.desk.history.fail(f"successor {new} {how}")
                log.error("%d Successor %d %s; this process serves again.", pid, new, how)
        if self._wants_restart and not self._life.is_stopping:
            self._spawn(to_all(self._take_followers()))

    def let_go(self) -> None:
        """This process ends."""
        if self.successor is not None:
            # It may have begun to serve just now.
            self.successor.listen()
            self.successor.let_go()
            for parcel in self.successor.sender.take_back():
                parcel.sock.close()
