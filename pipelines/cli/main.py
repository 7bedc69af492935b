"""The command `roboalign`: its subcommands, and how errors are reported.

Heavy modules (torch, ray, simulators) are imported inside the commands that need them, so that `roboalign --help` is
fast. Bad input, a full disk or denied access gives one line on stderr and exit code 2; a bug keeps its traceback and
exits with 1.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from roboalign_ray.config.loading import resolve_job
from roboalign_ray.config.paths import absolute_path
from roboalign_ray.foundation.failures import EXIT_BAD_INPUT, ReportedError, UserError, host_error
from roboalign_ray.pipelines.cli import agent as agent_cli
from roboalign_ray.pipelines.cli import assets as assets_cli
from roboalign_ray.pipelines.cli import bench as bench_cli
from roboalign_ray.pipelines.cli import chaos as chaos_cli
from roboalign_ray.pipelines.cli import config as config_cli
from roboalign_ray.pipelines.cli import episodes as episodes_cli
from roboalign_ray.pipelines.cli import executability as executability_cli
from roboalign_ray.pipelines.cli import jobs as jobs_cli
from roboalign_ray.pipelines.cli import judge as judge_cli
from roboalign_ray.pipelines.cli import reproduce as reproduce_cli
from roboalign_ray.pipelines.cli import rollout as rollout_cli
from roboalign_ray.pipelines.cli import score as score_cli
from roboalign_ray.pipelines.cli import simulation as simulation_cli
from roboalign_ray.pipelines.cli import spread as spread_cli
from roboalign_ray.pipelines.cli.options import Json, Overrides, Profile
from roboalign_ray.pipelines.cluster.signals import exit_code, forget_signals, handled, interrupt

EXIT_BUG = 1
EXIT_INTERRUPTED = 130

JOBS = "Jobs"
LOOK = "Look before you run"
MATERIAL = "Material"

HELP = """Robot video world models, aligned with reinforcement learning on Ray.

A job is described by a [bold]profile[/bold]: the name of a shipped profile (demo, demo_diffusion, single_gpu, \
node_8gpu, mixed_64, fleet_1000, paper_rt1, shipped, teacher, reproduce, hacking, persistence, progress, chaos) or the \
path of a YAML file, which may extend another profile. \
[bold]--set[/bold] changes single values.

\b
[bold]Examples[/bold]
  roboalign demo                                  align, then report
  roboalign plan paper_rt1                        does the job fit here?
  roboalign align demo --set alignment.updates=5  one value changed
  roboalign align mine.yaml --out runs/mine       a profile of your own
"""

app = typer.Typer(
    name="roboalign",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for job in (jobs_cli.demo, jobs_cli.pretrain, jobs_cli.align, jobs_cli.distill, jobs_cli.evaluate):
    app.command(rich_help_panel=JOBS)(job)
app.command(rich_help_panel=JOBS)(rollout_cli.rollout)
app.add_typer(score_cli.app, name="score", rich_help_panel=JOBS)
app.add_typer(agent_cli.app, name="agent", rich_help_panel=JOBS)
app.add_typer(reproduce_cli.app, name="reproduce", rich_help_panel=JOBS)
app.add_typer(episodes_cli.app, name="episodes", rich_help_panel=MATERIAL)
app.add_typer(bench_cli.app, name="bench", rich_help_panel=MATERIAL)
app.add_typer(judge_cli.app, name="judge", rich_help_panel=MATERIAL)
app.add_typer(executability_cli.app, name="executability", rich_help_panel=MATERIAL)
app.add_typer(assets_cli.app, name="assets", rich_help_panel=MATERIAL)
app.add_typer(config_cli.app, name="config", rich_help_panel=LOOK)
app.command(rich_help_panel=LOOK)(simulation_cli.simulate)
app.command(rich_help_panel=LOOK)(chaos_cli.chaos)
app.command(rich_help_panel=LOOK)(spread_cli.spread)


@app.callback(help=HELP)
def _root() -> None:
    absolute_path(".", "roboalign")  # torch aborts if the current folder no longer exists


@app.command(rich_help_panel=LOOK)
def plan(
    profile: Profile,
    overrides: Overrides = None,
    address: Annotated[
        str | None,
        typer.Option("--address", help="Check against a running Ray cluster: auto, or ray://host:port."),
    ] = None,
    cluster: Annotated[
        Path | None,
        typer.Option("--cluster", metavar="FILE", help="Check against a described cluster (YAML) instead."),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Also print the resolved profile with all keys.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check whether a job fits the cluster and can use its input, without running it.

    Prints the answer first, then the bundles of every role, the cluster, parameters by component, and tokens and bytes
    per rollout. Exits with 2 and names the missing resource if the job cannot be placed, or prints the job's own
    message if its episodes or weights cannot be used. With --cluster, problems of the input do not change the exit
    code.

    \b
    [bold]Examples[/bold]
      roboalign plan demo
      roboalign plan demo --full
      roboalign plan paper_rt1 --cluster nodes.yaml
      roboalign plan node_8gpu --address auto --json

    A cluster file: [cyan]nodes: \\[{cpus: 64, gpus: 8, memory_gb: 512, accelerator_type: H100, count: 2}][/cyan]
    """
    from roboalign_ray.pipelines.capacity.plan import make_plan, print_plan

    result = make_plan(resolve_job(profile, overrides or ()), address=address, cluster_file=cluster)
    if as_json:
        typer.echo(json.dumps(result.as_json(), indent=2))
    else:
        print_plan(result, full=full)
    result.require_fit()


@app.command(rich_help_panel=LOOK)
def version(as_json: Json = False) -> None:
    """Print the versions of roboalign_ray and its dependencies."""
    import platform
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    versions = {"python": platform.python_version()}
    for name in ("roboalign-ray", "torch", "ray", "deepspeed", "transformers", "vllm", "metaworld"):
        try:
            versions[name] = installed(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    if as_json:
        typer.echo(json.dumps(versions, indent=2))
    else:
        for name, text in versions.items():
            typer.echo(f"{name:<14} {text}")


def reported_error_in(error: BaseException | None) -> ReportedError | None:
    """The bad input or failure of the machine inside an exception, however it is wrapped.

    None means a bug. A `ReportedError` has precedence over a plain system error.

    Ray passes an actor's exception on as `cause` of its own exception, Ray Train as `controller_failure` or in the
    values of `worker_failures`, each in a wrapper with the traceback. The attributes are read by name, so that this
    module does not import ray.
    """
    causes = list(_causes(error))
    reported = (cause for cause in causes if isinstance(cause, ReportedError) and "what" in vars(cause))
    if (found := next(reported, None)) is not None:
        return found
    bare = [cause for cause in causes if not isinstance(vars(cause).get("cause"), BaseException)]
    return next(filter(None, map(host_error, bare)), None) or next(
        filter(None, map(_unusable_path, bare)), None
    )


def _unusable_path(error: BaseException) -> UserError | None:
    """The system error for a path that no file can have."""
    if not isinstance(error, OSError) or error.errno not in (errno.ENAMETOOLONG, errno.ELOOP):
        return None
    return UserError(
        f"cannot be used ({os.strerror(error.errno)})",
        where=f"{error.filename:.200}",
        remedy="give another path",
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The exception and all wrapped ones, outermost first."""
    seen: set[int] = set()
    queue = [error]
    while queue:
        current = queue.pop(0)
        if not isinstance(current, BaseException) or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        queue += list(_wrapped(current))


def _wrapped(error: BaseException) -> Iterator[BaseException | None]:
    for name in ("cause", "controller_failure", "_base_exc"):
        yield vars(error).get(name)
    failures = getattr(error, "worker_failures", None)
    if isinstance(failures, dict):
        yield from failures.values()
    if isinstance(error, BaseExceptionGroup):
        yield from error.exceptions
    yield error.__cause__


def _report(line: str, details: str = "") -> int:
    if details:
        print(details.rstrip(), file=sys.stderr)
    print(f"error: {' '.join(line.split())}", file=sys.stderr)
    return EXIT_BAD_INPUT


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Returns:
        0; 1 for a bug; 2 for bad input or a full disk; 130 after Ctrl-C, 143 after SIGTERM.
    """
    forget_signals()
    try:
        result = app(args=arguments, prog_name="roboalign", standalone_mode=False)
        # Typer would otherwise replace the exit code of a KeyboardInterrupt.
        return exit_code() if result == EXIT_INTERRUPTED else result if isinstance(result, int) else 0
    except (typer.Abort, KeyboardInterrupt):
        return exit_code()
    except typer.TyperException as error:
        if not error.format_message():  # called without arguments: Typer has printed the help
            return EXIT_BAD_INPUT
        command = getattr(getattr(error, "ctx", None), "command_path", "") or "roboalign"
        return _report(f"{error.format_message()}; see '{command} --help'")
    except BrokenPipeError:
        return 0
    except Exception as error:
        if found := reported_error_in(error):
            return _report(found.line(), found.details)
        traceback.print_exc()
        return EXIT_BUG


def main() -> None:
    """Entry point of the `roboalign` script."""
    with handled(interrupt):
        code = run()
    sys.exit(code)


if __name__ == "__main__":
    main()
