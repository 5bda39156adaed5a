"""Real-time scheduling for the threads that robots wait for, where the machine permits it."""

import logging
import os

log = logging.getLogger(__name__)


def prefer(priority: int) -> bool:
    """Schedule the calling thread by SCHED_FIFO; False where that is not permitted or not asked.

    What the thread starts begins as everybody else: only its own short periods are urgent.

    Args:
        priority: 1 to 99; 0: as everybody else, again if need be.
    """
    try:
        if priority:
            policy = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
            os.sched_setscheduler(0, policy, os.sched_param(priority))
        elif os.sched_getscheduler(0) != os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    except PermissionError:
        log.info("SCHED_FIFO is not permitted here; this thread runs as everybody else")
        return False
    return bool(priority)
