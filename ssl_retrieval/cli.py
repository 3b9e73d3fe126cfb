"""The commands; thin. Exit status: 0 done, 2 the user's mistake (one line), 1 our own failure."""

import errno
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ssl_retrieval import __version__
from ssl_retrieval.console import say
from ssl_retrieval.errors import UserError

app = typer.Typer(
    help="Train self-supervised image embeddings and compare them with offline baselines.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

_DISK_ERRORS = {errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS, errno.EDQUOT}

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="The job's config.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Keys that override the yaml.")
]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where the results go.")] = Path("ssl-retrieval-demo"),
) -> None:
    """Run the whole story on shipped images, offline: train, compare seven representations, one table.

    Example: ssl-retrieval demo --out demo
    """
    from ssl_retrieval.demo.run import run_demo

    _show(run_demo(out), out)


@app.command()
def pretrain(config: ConfigFile, overrides: Overrides = None) -> None:
    """Train a self-supervised network; the same command again resumes a stopped run.

    Example: ssl-retrieval pretrain configs/pretrain/simclr.yaml data.root=photos out=runs/simclr
    """
    from ssl_retrieval.train import PretrainConfig
    from ssl_retrieval.train import pretrain as run

    print(run(_load(PretrainConfig, config, overrides)))


@app.command()
def embed(config: ConfigFile, overrides: Overrides = None) -> None:
    """Embed the images of a folder or dataset.

    Example: ssl-retrieval embed configs/embed/folder.yaml data.root=photos out=runs/photos
    """
    from ssl_retrieval.embed import EmbedConfig, run_embed

    print(run_embed(_load(EmbedConfig, config, overrides)))


@app.command()
def evaluate(config: ConfigFile, overrides: Overrides = None) -> None:
    """Score one representation on one task.

    Example: ssl-retrieval evaluate configs/evaluate/folder.yaml data.root=photos out=runs/photos-eval
    """
    from ssl_retrieval.compare import compare as compare_reports
    from ssl_retrieval.evaluate import EvaluateConfig
    from ssl_retrieval.evaluate import evaluate as run
    from ssl_retrieval.report.table import to_rich

    cfg = _load(EvaluateConfig, config, overrides)
    report = run(cfg)
    Console().print(to_rich(compare_reports([report])))
    say(f"written: {Path(cfg.out).expanduser() / 'report.json'}")


@app.command()
def compare(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="CONFIG.yaml [KEY=VALUE]... | A.json B.json...", help="What to compare."),
    ],
    out: Annotated[Path | None, typer.Option(help="Where to write, for finished reports.")] = None,
    force: Annotated[
        bool, typer.Option(help="Compare reports although protocols or queries differ.")
    ] = False,
) -> None:
    """Compare many representations on many tasks, or finished reports.

    Example: ssl-retrieval compare configs/compare/grocery.yaml data.root=grocery out=runs/grocery

    Example: ssl-retrieval compare runs/a/report.json runs/b/report.json --out runs/a-b
    """
    from ssl_retrieval.grid import CompareConfig, compare_reports, run_grid
    from ssl_retrieval.report.files import read_report

    if any(item.endswith(".json") for item in inputs):
        target = out or Path("comparison")
        reports = [read_report(Path(item)) for item in inputs]
        _show(compare_reports(reports, target, force), target)
        return
    overrides = [*inputs[1:], *([f"out={out}"] if out else [])]
    cfg = _load(CompareConfig, Path(inputs[0]), overrides)
    _show(run_grid(cfg), Path(cfg.out).expanduser())


@app.command()
def search(
    embeddings: Annotated[Path, typer.Option(help="A folder that `embed` left.")],
    query: Annotated[Path, typer.Option(help="An image file.")],
    k: Annotated[int, typer.Option(help="How many results.")] = 10,
    html: Annotated[Path | None, typer.Option(help="Also write a page with the pictures.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, …")] = "auto",
) -> None:
    """Find the images that look most like a picture: prints score and path, best first.

    Example: ssl-retrieval search --embeddings runs/photos --query holiday.jpg --k 5 --html hits.html
    """
    from ssl_retrieval.find import find
    from ssl_retrieval.report.page import write_search_page

    hits = find(embeddings.expanduser(), query.expanduser(), k, device)
    for hit in hits:
        print(f"{hit.score:.4f}\t{hit.file}")
    if html is not None:
        write_search_page(query.expanduser(), [(hit.file, hit.score) for hit in hits], html)
        say(f"written: {html}")


def _load(schema: Any, file: Path, overrides: list[str] | None) -> Any:
    from ssl_retrieval import config

    return config.load(schema, file, overrides or [])


def _show(comparison: Any, out: Path) -> None:
    from ssl_retrieval.report.headline import headline
    from ssl_retrieval.report.table import to_rich

    Console().print(to_rich(comparison))
    for task in comparison.tasks:
        for line in headline(task):
            print(line)
    say(f"written: {out / 'report.html'}, table.md, table.csv")


def main() -> None:
    """Run the command line."""
    try:
        app()
    except UserError as error:
        say(f"error: {error}")
        sys.exit(2)
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        say(f"error: {error.filename or 'disk'}: {error.strerror}: choose another out, or make room")
        sys.exit(2)
    except KeyboardInterrupt:
        say("stopped; the same command goes on from the last checkpoint")
        sys.exit(130)
