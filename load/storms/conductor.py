"""What locust is told: the options of a storm, what happens before its users come, and after they have gone.

Locust runs on gevent, which the audit would block; it is a process of its own, and its verdict is locust's exit code.
"""

import signal
import subprocess
import sys
from argparse import Namespace
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import gevent
import orjson
from locust import events
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import STATE_RUNNING, STATE_SPAWNING, MasterRunner, Runner, WorkerRunner

from load.storms.arrivals import LAST_ANSWERS_S
from load.storms.ledger import Ledger
from load.storms.options import SECONDS, add_options, token_file
from load.storms.profiles import PROFILES
from load.storms.scenario import Scenario
from load.storms.stage import Stage
from load.storms.storming import Storming
from load.storms.verdict import NOT_JUDGED, OBSERVED, VERDICT
from load.storms.watch import Watch

REPOSITORY = Path(__file__).parents[2]
POLL_S = 0.1
UNDER_WAY = (STATE_SPAWNING, STATE_RUNNING)


def tell_of_options(parser: LocustArgumentParser, **_: object) -> None:
    """Have locust understand the options of a storm, beside its own."""
    add_options(parser)


def apply_profile(environment: Environment, runner: Runner, **_: object) -> None:
    """As many users as the profile has, unless it was said how many."""
    if isinstance(runner, MasterRunner | WorkerRunner):
        _refuse("a storm runs in one process: its acknowledged calls are held against the database as one list")
    options = _options(environment)
    if (options.profile or "default") not in PROFILES:
        _refuse(f"--profile is one of {', '.join(PROFILES)}")
    if options.num_users is not None and options.num_users < 1:
        _refuse(f"--users is {options.num_users}, and has to be 1 or more")
    if not token_file(options).exists():
        _refuse(f"{token_file(options)}: the admin's token is not there")
    profile = PROFILES[options.profile or "default"]
    options.num_users = options.num_users or profile.users
    options.spawn_rate = options.spawn_rate or options.num_users
    # Users end by themselves; those that are stopped before hear their last answers: of their arrivals, their workers,
    # and what goes on beside.
    environment.stop_timeout = environment.stop_timeout or 3 * LAST_ANSWERS_S
    if not environment.host and not options.host:
        service = Path(options.data_dir, "service.json")
        if not service.exists():
            _refuse(f"no --host, and no service runs in {options.data_dir}: start it with `remit up`")
        environment.host = orjson.loads(service.read_bytes())["url"]


def begin(environment: Environment, **_: object) -> None:
    """Make ready what the users share."""
    # First of all: without it, a storm that cannot begin would not end either.
    gevent.spawn(_end_when_all_are_done, environment)
    options = _options(environment)
    profile = PROFILES[options.profile or "default"]
    host = (environment.host or options.host).rstrip("/")
    directory = Path(options.report_dir or REPOSITORY / f"load/results/storms/{datetime.now(UTC):%Y%m%dT%H%M%S}")
    directory.mkdir(parents=True, exist_ok=True)
    # An earlier storm's, which would stand where this one comes to none.
    (directory / VERDICT).unlink(missing_ok=True)
    storming = Storming(
        host=host,
        stage=Stage(host, token_file(options).read_text().strip()),
        ledger=Ledger(directory),
        directory=directory,
        profile=options.profile or "default",
        seconds=options.seconds or SECONDS,
        most=options.most,
        pace=options.pace,
        scale=options.scale,
        in_flight=options.in_flight or profile.in_flight,
        may_miss=options.may_miss if options.may_miss is not None else profile.may_miss,
        users=options.num_users,
        workers=options.workers if options.workers is not None else profile.workers,
        tolerance=options.tolerance,
        watch=Watch(Path(options.data_dir, "service.json"), directory),
    )
    storming.begin(environment)
    storming.watch.start()
    if options.headless:
        # Locust's own handlers stop its users wherever they are, and one of them writes no report. Here they end.
        signal.signal(signal.SIGINT, lambda *_: _interrupt(storming))
        signal.signal(signal.SIGTERM, lambda *_: _interrupt(storming))


def end_the_arrivals(environment: Environment, **_: object) -> None:
    """Who is stopped, from locust's web interface or by its `--run-time`, has nothing more to send."""
    assert environment.runner is not None
    if environment.runner.user_count:
        Storming.of(environment).interrupt()


def judge(environment: Environment, **_: object) -> None:
    """Write down what was seen, and have it judged."""
    options, storming = _options(environment), Storming.of(environment)
    storming.watch.stop()
    for user_class in environment.user_classes:
        if issubclass(user_class, Scenario) and user_class.name in storming.tallies:
            user_class.promise(storming)
    storming.ledger.close()
    (storming.directory / OBSERVED).write_bytes(orjson.dumps(storming.told(), option=orjson.OPT_INDENT_2))
    database = options.database or _embedded(Path(options.data_dir))
    judging = subprocess.run(
        [
            *(sys.executable, "-m", "load.storms.judge", str(storming.directory), "--database", database),
            *("--drain-s", str(options.drain_s), "--max-rss-mib", str(options.max_rss_mib)),
        ],
        cwd=REPOSITORY,
        check=False,
    )
    judged = (storming.directory / VERDICT).exists()
    environment.process_exit_code = judging.returncode if judged else NOT_JUDGED


def judge_what_was_interrupted(environment: Environment, **_: object) -> None:
    """A run that is interrupted is judged, too: stopping it does that."""
    if environment.runner is not None:
        environment.runner.stop()
    if environment.process_exit_code is None:
        # It never got as far as a verdict, and must not look as if it had.
        environment.process_exit_code = NOT_JUDGED


def _interrupt(storming: Storming) -> None:
    # More than once where a terminal, a supervisor and a parent all tell.
    if not storming.over.is_set():
        print("interrupted: the calls in flight are heard, and what there was is judged", file=sys.stderr)
    storming.interrupt()


def _end_when_all_are_done(environment: Environment) -> None:
    """Users end by themselves; the run ends with the last of them, unless it was stopped before."""
    runner = environment.runner
    assert runner is not None
    while runner.state not in UNDER_WAY:
        gevent.sleep(POLL_S)
    while runner.state in UNDER_WAY and (runner.state != STATE_RUNNING or runner.user_count):
        gevent.sleep(POLL_S)
    if _options(environment).headless:
        runner.quit()
    else:
        runner.stop()


def _refuse(why: str) -> NoReturn:
    """End before anything has begun."""
    print(why, file=sys.stderr)
    sys.exit(NOT_JUDGED)


def _embedded(data_dir: Path) -> str:
    return f"postgresql://remit@/remit?host={data_dir.absolute() / 'postgres'}"


def _options(environment: Environment) -> Namespace:
    options = environment.parsed_options
    assert isinstance(options, Namespace)
    return options


def conduct() -> None:
    """Have locust tell of what happens."""
    events.init_command_line_parser.add_listener(tell_of_options)
    events.init.add_listener(apply_profile)
    events.test_start.add_listener(begin)
    events.test_stopping.add_listener(end_the_arrivals)
    events.test_stop.add_listener(judge)
    events.quitting.add_listener(judge_what_was_interrupted)
