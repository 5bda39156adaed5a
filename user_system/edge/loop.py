"""The main loop: one thread per robot, once per control period of the robot's own clock.

Everything else in this package is a part of it; ``station.py`` has the parts at hand. The words:

- *observe*: wait for the driver's reading that begins the period. A person's motion goes to the
  driver meanwhile, at 100 Hz and more (a script's at a fast clock once per period, ``turns.py``),
  and stops (takeover, emergency stop) take effect at once.
- *advise*: the policy worker judges the step that ended and plans the one that begins, if it is in
  time. It runs plugin code, so it may be late, wrong or dead; the loop is none of these.
- *decide*: the session, the only writer of the robot's mode, follows what happened.
- *arbitrate*: emergency stop > person > rewind and reset > policy; one absolute set-point.
- *command*: to the driver, which checks it again and holds when nothing comes.
- *record*: the step goes to the adder, its fragments to the spool, and from there to the head.
"""

from user_system.edge.station import Station


def run(robot: Station) -> None:
    """Observe, advise, decide, arbitrate, command, record; until the station is closed."""
    while robot.open:
        seen = robot.observe()
        if seen is None:
            robot.alone()
            continue
        executed = robot.executed(seen)
        advice = robot.advise(seen, executed)
        step = robot.decide(advice)
        target = robot.arbitrate(seen, step)
        robot.command(target)
        robot.record(seen, step)
        robot.tell(seen)
