"""Exceptions at any moment, as Ctrl-C and the alarm of a time limit raise them."""

import gc
import random
import signal


class Alarm(KeyboardInterrupt):
    """Raised by the signal."""


def _ring(number, frame):
    raise Alarm


def _is_due_to_one(error):
    """torch's contexts of modes fail where an alarm ends them, with errors of their own."""
    return error is not None and (isinstance(error, Alarm) or _is_due_to_one(error.__cause__ or error.__context__))


def alarms(work, most_seconds, count):
    """Calls `work` again and again until an alarm comes, within so many seconds; yields after each of so many.

    The process's own handler and timer, such as those of a time limit for tests, come back in the end.
    """
    theirs, timer = signal.signal(signal.SIGALRM, _ring), signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        for seconds in random.Random(0).choices([most_seconds * n / 150 for n in range(1, 150)], k=count):
            try:
                signal.setitimer(signal.ITIMER_REAL, seconds)
                while True:
                    work()
            except BaseException as error:
                if not _is_due_to_one(error):
                    raise
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, theirs)
        signal.setitimer(signal.ITIMER_REAL, *timer)
        gc.collect()  # contexts that were interrupted, and that frames of exceptions hold in circles
