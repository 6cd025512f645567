"""The options of a storm, which locust and `poe storm` both understand: defined once."""

from argparse import Action, ArgumentParser, Namespace
from pathlib import Path

from load.arguments import above_zero, at_least_one, no_less_than_zero, not_negative, share
from load.storms.profiles import PROFILES

SECONDS, SOAK_SECONDS = 60.0, 600.0


def add_options(parser: ArgumentParser) -> list[Action]:
    """Add them to a parser, beside its own; the actions, each of which takes one value."""
    own = parser.add_argument_group("Storm options", "and --profile: " + ", ".join(PROFILES))
    return [
        own.add_argument(
            "--data-dir", default=".remit", help="the service's: its URL, token and database are found there"
        ),
        own.add_argument("--admin-token-file", help="a file with the admin's token, instead of the data directory's"),
        own.add_argument("--database", help="the URL of the service's PostgreSQL, instead of the data directory's"),
        own.add_argument("--report-dir", help="where the report goes (load/results/storms/…)"),
        own.add_argument(
            "--seconds",
            type=above_zero,
            help=f"how long calls arrive ({SECONDS:.0f}; `poe storm soak` {SOAK_SECONDS:.0f})",
        ),
        own.add_argument("--most", type=at_least_one, default=1_000_000, help="how many may come, by kind and user"),
        own.add_argument("--pace", type=above_zero, default=1.0, help="multiplies the rates"),
        own.add_argument(
            "--scale", type=above_zero, default=1.0, help="multiplies the sizes: of trees, groups, depths"
        ),
        own.add_argument("--in-flight", type=at_least_one, help="calls that one user waits for, not the profile's"),
        own.add_argument("--workers", type=not_negative, help="workers that claim and complete, not the profile's"),
        own.add_argument("--may-miss", type=share, help="the share of arrivals that may be missed, not the profile's"),
        own.add_argument(
            "--drain-s", type=no_less_than_zero, default=30.0, help="how long fences may stay open after the last call"
        ),
        own.add_argument(
            "--tolerance", type=above_zero, default=3.0, help="by which factor calls beside others may be slower"
        ),
        own.add_argument("--max-rss-mib", type=above_zero, default=300.0, help="what the service's process may take"),
    ]


def token_file(options: Namespace) -> Path:
    """Where the admin's token is."""
    return Path(options.admin_token_file or Path(options.data_dir, "admin-token"))
