"""Renewing a certificate before it runs out, over the connection that the running one opened.

A third of a certificate's life before its end the process makes a new key, has it certified by
the hub and replaces its file. Whoever holds the wallet shows the new one from the next connection
on; streams that exist go on. Processes whose credentials lie beside the authority itself have
nothing to do: the hub renews those.
"""

import logging
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

from comms.authority import EARLY, Authority, locked
from comms.credentials import Credentials, key_fingerprint, parse, subject, write
from comms.keys import make_key, make_request
from comms.wallet import DiskWallet
from user_system.core.errors import SecurityError, UserSystemError

log = logging.getLogger(__name__)

ALARM_S = 86400.0
"""Less life than this, and not renewed: somebody must look."""
_LOOK_S = 60.0
"""Longest time between two looks at the clock, which can be set meanwhile."""
_AGAIN_S = (1.0, 600.0)
"""Least and longest wait after a renewal that failed."""
_COMPLAIN_S = 3600.0


def life_of(credentials: Credentials) -> tuple[float, float]:
    """Return from when until when a certificate is good, s since 1970."""
    certificate = parse(credentials.certificate)
    since = (certificate.not_valid_before_utc + EARLY).timestamp()
    return since, certificate.not_valid_after_utc.timestamp()


def is_late(since: float, until: float, now: float) -> bool:
    """Return whether a certificate should have been renewed long ago."""
    return until - now < min(ALARM_S, (until - since) / 6)


def here(directory: Path) -> bool:
    """Return whether credentials lie beside the authority's key, so that the hub renews them."""
    return (directory / "ca.key").exists()


def renew(wallet: DiskWallet, ask: Callable[[bytes], bytes]) -> Credentials:
    """Replace the credentials of a wallet by new ones; return them. The directory's lock is held.

    Args:
        wallet: whose.
        ask: signing request -> certificate, both PEM; ``EnrolmentClient.renew``.

    Raises:
        SecurityError: the hub refuses, or what it answers is not for us.
        LinkError: it cannot be reached.
    """
    old = wallet()
    key, pem = make_key()
    signed = ask(make_request(key, old.peer))
    certificate = parse(signed)
    if subject(certificate) != old.peer or key_fingerprint(
        certificate.public_key()
    ) != key_fingerprint(key.public_key()):
        raise SecurityError(
            "the hub answered with somebody else's certificate",
            got=certificate.subject.rfc4514_string(),
        )
    path = wallet.directory / f"{wallet.name}.pem"
    kept = path.read_bytes()
    write(path, signed + pem, secret=True)
    try:
        return Credentials.load(wallet.directory, wallet.name)
    except SecurityError:
        write(path, kept, secret=True)
        raise


class Renewer:
    """Keeps the certificate of one process good while it runs.

    Args:
        wallet: what to renew.
        ask: see ``renew``.
        wall_s: s since 1970.
    """

    def __init__(
        self,
        wallet: DiskWallet,
        ask: Callable[[bytes], bytes],
        wall_s: Callable[[], float] = time.time,
    ):
        self._wallet, self._ask, self._wall_s = wallet, ask, wall_s
        # Hosts that were enrolled together do not come back together.
        self._share = random.uniform(1.0, 1.1) / 3
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="renewal", daemon=True)
        self._complain_at = 0.0
        self._figures = dict.fromkeys(("renewals", "renewals_failed"), 0.0)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def close(self) -> None:
        """Stop; idempotent. A request that is under way is left behind."""
        self._closing.set()

    def stats(self) -> dict[str, float]:
        """Return renewals, failures, and the life that is left, s."""
        _, until = life_of(self._wallet())
        return {**self._figures, "certificate_left_s": until - self._wall_s()}

    def due_s(self) -> float:
        """Return the time until the certificate should be renewed, s; negative: since when."""
        since, until = life_of(self._wallet())
        return until - (until - since) * self._share - self._wall_s()

    def _run(self) -> None:
        wait_s = 0.0
        while not self._closing.wait(wait_s):
            try:
                wait_s = self._turn()
            except Exception:  # top of a thread: without it the certificate would run out unnoticed
                log.exception("renewal of %s", self._wallet.name)
                wait_s = _LOOK_S

    def _turn(self) -> float:
        """Renew if it is due; return the time until the next look, s."""
        due_s = self.due_s()
        if due_s > 0:
            return min(_LOOK_S, due_s)
        try:
            # Processes that share a name share a file: one renews, the others find it done.
            with locked(self._wallet.directory):
                if self.due_s() <= 0:
                    new = renew(self._wallet, self._ask)
                    self._figures["renewals"] += 1
                    log.info("%s: new certificate, good for %.1f h", new.peer.name, _hours(new))
        except (UserSystemError, OSError) as error:
            return self._failed(error)
        return 0.0

    def _failed(self, error: Exception) -> float:
        self._figures["renewals_failed"] += 1
        now = self._wall_s()
        since, until = life_of(self._wallet())
        if now >= self._complain_at:
            self._complain_at = now + min(_COMPLAIN_S, (until - since) / 20)
            level = logging.ERROR if is_late(since, until, now) else logging.WARNING
            text = "certificate of %s, good for %.1f h more, could not be renewed: %s"
            log.log(level, text, self._wallet.name, (until - now) / 3600, error)
        least, most = _AGAIN_S
        return random.uniform(0.5, 1.0) * min(max(least, (until - since) / 100), most)


class Reissuer:
    """Keeps good what an authority has issued on its own host, where no hub does that.

    Args:
        authority: whose.
        every_s: time between two looks.
    """

    def __init__(self, authority: Authority, every_s: float = _LOOK_S):
        self._authority, self._every_s = authority, every_s
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="renewal", daemon=True)

    def __enter__(self) -> "Reissuer":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(self._every_s):
            try:
                for name in self._authority.issued():
                    if self._authority.reissue(name):
                        log.info("renewed the certificate of %s", name)
            except (UserSystemError, OSError) as error:
                log.error("certificates of this host cannot be looked after: %s", error)


def _hours(credentials: Credentials) -> float:
    since, until = life_of(credentials)
    return (until - since) / 3600
