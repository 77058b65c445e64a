"""The command line, ``seal`` or ``python -m seal_lib``.

It learns from the user's documents (learn, ask, list, show, revert, export) and runs the notebooks (run, all, status,
notebooks, check, spent, clean).
"""

import argparse
import signal
import sys

from seal_lib import paths
from seal_lib.errors import command_line
from seal_lib.plan import checks, costs, needs
from seal_lib.report import compare, spending
from seal_lib.runs import params, runner, trackers
from seal_lib.store import commands as own
from seal_lib.store.sessions import assigned


def ready(values: dict[str, object]) -> None:
    """Raise SealError if the parameters do not go together, or name something that is not on this machine."""
    checks.check(values)
    checks.on_this_machine(values)


def enough(notebook: str, values: dict[str, object]) -> str:
    """Compare this machine's memory with a notebook's need before it starts, and return the comparison as text.

    Raises:
        SealError: the memory is too small, or as `ready`.
    """
    ready(values)
    return needs.check(notebook, values, costs.this_device())


def tell_spending(name: str, scale: str, prices: str) -> int:
    """Print what a finished run took, by stage, and by arm for each point of accuracy. Return the exit code.

    ``name`` is a notebook or a run folder; ``prices`` is a YAML file of prices, or "" for none.
    """
    known = spending.Prices.read(paths.given(prices)) if prices else None
    folder = compare.run_folder(params.find(name) if name[:1].isdigit() and "/" not in name else name, scale)
    print(f"{paths.short(folder)}: seconds of all workers together\n")
    print(spending.stages(folder, known).to_string(float_format=lambda value: f"{value:,.2f}".rstrip("0").rstrip(".")))
    of_arms = spending.by_arm(folder, known)
    if len(of_arms):
        print(f"\nFor each arm, its policy's rounds included:\n{of_arms.to_string(na_rep='')}")
    return 0


@command_line
def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 1 failed, 2 refused before anything ran, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="seal", description="Learn from documents; run the notebooks.")
    commands = parser.add_subparsers(dest="command", required=True)
    own.add_to(commands)
    one = commands.add_parser("run", help="bring one notebook up to date")
    one.add_argument("notebook")
    one.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="one parameter for this run")
    several = commands.add_parser("all", help="bring every notebook up to date, in file order")
    several.add_argument("--only", default="", metavar="A,B", help="names, or unique beginnings of names")
    several.add_argument("--jobs", type=int, default=1, help="notebooks at once")
    several.add_argument("--keep-going", action="store_true", help="go on after a failure")
    for running in (one, several):
        running.add_argument("--scale", default="seedling")
        running.add_argument("--force", action="store_true", help="run again; the finished run is moved aside")
    for name, text in (("status", "what is done"), ("notebooks", "in order"), ("check", "check all parameters")):
        commands.add_parser(name, help=text)
    spent = commands.add_parser("spent", help="what a run took: seconds, tokens, money")
    spent.add_argument("run", help="a notebook, or the folder of a run")
    spent.add_argument("--scale", default="seedling")
    spent.add_argument(
        "--prices", default="", metavar="FILE", help="YAML: currency, hour, million_read, million_written"
    )
    commands.add_parser("clean", help="remove all runs").add_argument("--yes", action="store_true")
    given = parser.parse_args(arguments)
    runner.end_with_parent()
    for number in (signal.SIGTERM, signal.SIGHUP):  # stop the kernel too, even if the shell ignores SIGINT
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, signal.default_int_handler)
    if "act" in given:
        return own.run(given)
    if given.command in ("run", "all"):
        trackers.named()  # report a tracker that is not installed at once
    if given.command == "run":
        values = assigned(given.set)
        return runner.run(params.find(given.notebook), given.scale, values, given.force, enough)
    if given.command == "all":
        return runner.run_all(given.scale, given.only, given.keep_going, given.force, max(1, given.jobs), ready)
    if given.command == "spent":
        return tell_spending(given.run, given.scale, given.prices)
    if given.command == "clean":
        return runner.clean(given.yes)
    if given.command == "notebooks":
        print("\n".join(params.names()))
        return 0
    return runner.status() if given.command == "status" else runner.check_parameters(checks.check)


if __name__ == "__main__":
    sys.exit(main())
