"""Who becomes a peer, and who stays one: the hub signs, and writes down who asked for what."""

import json
import logging
import time
from collections.abc import Mapping
from typing import Any

from comms import admission, deeds
from comms.authority import Authority, locked
from comms.credentials import Peer, read_allowed
from comms.invitations import Invitations, Request
from comms.pb import enrol_pb2
from comms.renewal import is_late
from user_system.core.clock import SECOND, Clock
from user_system.core.errors import SecurityError
from user_system.core.throttle import Throttle
from user_system.hub.audit import Audit

log = logging.getLogger(__name__)

LOOK_S = 60.0
"""How often certificates are looked at."""


ANSWER_S = 1.0
"""Time for a host that leaves to be told that it has."""


class Enrolments:
    """Implements ``comms.enrolment.EnrolmentHandler``. Thread-safe.

    What is let in is written to the audit log before it is let in, so that a log that cannot be
    written lets nobody in. Deeds of the command line are noted beside the authority and follow as
    soon as the hub runs (``tick``).

    Args:
        authority: signs.
        audit: the hub's log.
        clock: wall clock.
        facts: what a host that joins is told: how it reaches the head. Beside it, under ``way``,
            it is told how it gets through the tunnel, which is its own alone.
    """

    def __init__(self, authority: Authority, audit: Audit, clock: Clock, facts: Mapping[str, Any]):
        self._authority, self._audit, self._clock = authority, audit, clock
        self._invitations = Invitations(authority)
        self._facts = facts
        self._refusals = Throttle(clock, 1.0, 10.0)
        self._next_look_ns = 0
        self._leaving: dict[str, int] = {}
        """Who has left, and when the tunnel is shut behind it."""
        self._figures: dict[str, float] = {}

    # --- EnrolmentHandler ------------------------------------------------------------------------

    def join(self, request: Request, address: str) -> enrol_pb2.JoinReply:
        """Let somebody in who shows an invitation's secret; see ``Invitations.redeem``."""
        details = {"invitation": request.id.hex()[:32], "address": address[:64]}

        def witness(peer: Peer) -> None:
            self._audit.write("join", peer.name, role=peer.role.value, **details)

        try:
            signed = self._invitations.redeem(request, witness)
            way = self._admit(signed.peer, request)
        except SecurityError as error:
            self._refused("join", "", str(error), **details)
            raise
        if signed.again:
            self._audit.write("join again", signed.peer.name, **details)
        log.info("%s joined as %s from %s", signed.peer.name, signed.peer.role.value, address)
        return enrol_pb2.JoinReply(
            name=signed.peer.name,
            role=signed.peer.role.value,
            certificate=signed.certificate,
            authority=self._authority.pem,
            hub_curve=self._authority.hub_curve,
            facts=json.dumps({**self._facts, "way": way}),
        )

    def _admit(self, peer: Peer, request: Request) -> dict[str, Any]:
        """Let a newcomer through the tunnel, unless its name was revoked in the meantime.

        Under the lock: who revokes takes a name off the list first and then shuts the tunnel, so
        one of the two sees the other. Later than that nobody would ever shut it.
        """
        directory = self._authority.directory
        with locked(directory):
            if peer.name not in read_allowed(directory):
                raise SecurityError(
                    f"{peer.name!r} was revoked while it joined",
                    todo="Have a new invitation made at the head: user-system enrol create NAME.",
                )
            return admission.admit(directory, peer.name, request.tunnel)

    def renew(self, peer: Peer, certificate: bytes, csr: bytes) -> bytes:
        """Return a new certificate for a peer; see ``Authority.renew``."""
        try:
            return self._authority.renew(
                certificate,
                csr,
                lambda who: self._audit.write("renew", who.name, role=who.role.value),
            )
        except SecurityError as error:
            self._refused("renew", peer.name, str(error))
            raise

    def leave(self, peer: Peer) -> None:
        """Revoke a robot host that leaves for good; the deed says that it was itself.

        The answer has to get out through the tunnel, which is shut a moment later.
        """
        Invitations(self._authority, by=peer.name).revoke(peer.name, shut=False)
        self._leaving[peer.name] = self._clock.now_ns() + int(ANSWER_S * SECOND)
        log.info("%s has left", peer.name)

    # --- time ------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Take over what the command line did; look after certificates once a minute.

        Raises:
            StoreError: the audit log cannot be written; what is not in it is tried again.
        """
        directory = self._authority.directory
        if deeds.waiting(directory):
            with locked(directory):
                deeds.hand_over(directory, self._audit.write)
        now = self._clock.now_ns()
        for name in [name for name, due in list(self._leaving.items()) if now >= due]:
            del self._leaving[name]
            self._invitations.shut_out(name)
        if now < self._next_look_ns:
            return
        self._next_look_ns = now + int(LOOK_S * SECOND)
        try:
            for name in self._authority.issued():
                if self._authority.reissue(name):
                    log.info("renewed the certificate of %s", name)
                    self._audit.write("renew", name, here=True)
            self._look()
        except SecurityError as error:
            log.error("certificates of this host cannot be looked after: %s", error)

    def look_now(self) -> None:
        """Have the next tick look after certificates."""
        self._next_look_ns = 0

    def figures(self) -> dict[str, float]:
        """Return the time left to the certificate that runs out first, and how many are late."""
        return self._figures

    def _look(self) -> None:
        """Say which certificates were not renewed in time."""
        late, least = 0, float("inf")
        for name, entry in read_allowed(self._authority.directory).items():
            known = entry.get("certificates", {}).values()
            newest = max(known, key=lambda facts: float(facts["until"]), default=None)
            if newest is None:
                continue
            left_s = newest["until"] - time.time()
            least = min(least, left_s)
            if is_late(newest["since"], newest["until"], time.time()):
                late += 1
                log.error(_LATE, name, left_s / 3600, name)
        self._figures = {"certificates_late": float(late), "certificate_left_s": least}

    def _refused(self, action: str, who: str, why: str, **details: Any) -> None:
        """Write a refusal down; of a flood of them only the first ones."""
        log.warning("refused to let %s %s: %s", who or "somebody", action, why)
        if self._refusals.take():
            self._audit.write("refuse", who, to=action, why=why[:300], **details)


_LATE = (
    "the certificate of %s runs out in %.1f h and was not renewed: is it away? After that it comes "
    "back only by `user-system enrol revoke %s` and a new invitation"
)
