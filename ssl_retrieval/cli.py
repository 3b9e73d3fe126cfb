"""The commands; thin. Exit status: 0 done, 2 the user's mistake (one line), 1 our own failure."""

import errno
import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ssl_retrieval import __version__
from ssl_retrieval.console import print_line, say
from ssl_retrieval.errors import UserError

app = typer.Typer(
    help="Train self-supervised image embeddings and compare them with offline baselines.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

data_app = typer.Typer(help="Prepare images.", rich_markup_mode="rich")
app.add_typer(data_app, name="data")

metrics_app = typer.Typer(help="Look up metrics, and why libraries disagree.", rich_markup_mode="rich")
app.add_typer(metrics_app, name="metrics")

_DISK_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
}
# What typer raises for a wrong command line; it has no public name of its own.
_UsageError: Any = typer.BadParameter.__base__
_STOPPED = 130

Inputs = Annotated[
    list[str],
    typer.Argument(metavar="CONFIG.yaml [KEY=VALUE]...", help="The job, and keys that override its yaml."),
]


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(__version__)
    elif context.invoked_subcommand is None:
        print(context.get_help())


@data_app.callback(invoke_without_command=True)
@metrics_app.callback(invoke_without_command=True)
def _group(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@data_app.command("pack")
def data_pack(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A folder of images.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The .npy file to write.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="size=256: side in pixels. on_error=skip, or fail."),
    ] = None,
) -> None:
    """Decode a folder of images once, into one file of squares for fast pretraining.

    Stopped, the same command goes on. Train on it with data.name=packed data.root=DST.

    Example: ssl-retrieval data pack photos photos.npy size=256
    """
    from ssl_retrieval import config
    from ssl_retrieval.packing import PackConfig, pack_folder

    cfg = config.load(PackConfig, None, settings or [])
    print(pack_folder(source.expanduser(), target.expanduser(), cfg))


@metrics_app.command("list")
def metrics_list() -> None:
    """Print every metric with its normalisation and definition.

    Example: ssl-retrieval metrics list
    """
    from ssl_retrieval.metrics_catalogue import catalogue
    from ssl_retrieval.report.metrics_table import catalogue_table

    Console().print(catalogue_table(catalogue()))


@metrics_app.command("explain")
def metrics_explain(
    report: Annotated[
        Path | None, typer.Argument(metavar="REPORT.json", help="A report whose query is to be explained.")
    ] = None,
    query: Annotated[str, typer.Option(help="The query's id in the report.")] = "",
    hits: Annotated[
        str, typer.Option(help="1 for each relevant item, 0 for each other one, best first.")
    ] = "",
    relevant: Annotated[
        int | None, typer.Option(help="Relevant items in the gallery; by default those among the hits.")
    ] = None,
    scores: Annotated[str | None, typer.Option(help="One score per item; equal ones tie.")] = None,
    k: Annotated[int, typer.Option(help="The cut-off of metrics that have one.")] = 5,
) -> None:
    """Score one ranking as other libraries would, with the reason wherever a number differs from ours.

    Example: ssl-retrieval metrics explain --hits 1,0,1,0 --relevant 4

    Example: ssl-retrieval metrics explain runs/a/report.json --query beach/3.jpg
    """
    from ssl_retrieval.metrics_explained import explain
    from ssl_retrieval.metrics_one_ranking import OneRanking, numbers
    from ssl_retrieval.report.files import ranks_of_query, read_report
    from ssl_retrieval.report.metrics_table import explained_table

    if report is not None:
        if hits or scores is not None or relevant is not None:
            raise UserError("give a report and --query, or --hits, not both")
        one = OneRanking.of_ranks(ranks_of_query(read_report(report), query))
    else:
        given = None if scores is None else numbers("scores", scores, float)
        one = OneRanking.make(numbers("hits", hits, int), given, relevant)
    Console().print(explained_table(explain(one, k), one))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where the results go.")] = Path("ssl-retrieval-demo"),
) -> None:
    """Run the whole story on shipped images, offline: train, compare six representations, one table.

    Example: ssl-retrieval demo --out demo
    """
    from ssl_retrieval.demo.run import run_demo

    _show(run_demo(out), out)


@app.command()
def pretrain(inputs: Inputs) -> None:
    """Train a self-supervised network; the same command again resumes a stopped run.

    Example: ssl-retrieval pretrain configs/pretrain/simclr.yaml data.root=photos out=runs/simclr
    """
    from ssl_retrieval import distributed
    from ssl_retrieval.train import PretrainConfig
    from ssl_retrieval.train import pretrain as run

    file = run(_load(PretrainConfig, inputs))
    if distributed.rank() == 0:
        print(file)
    distributed.stop()


@app.command()
def finetune(inputs: Inputs) -> None:
    """Train a network on labels, or go on with a learned one: the same loop and keys as pretrain.

    Example: ssl-retrieval finetune configs/finetune/arcface.yaml data.root=photos out=runs/arcface
    """
    pretrain(inputs)


@app.command()
def adapt(
    photos: Annotated[Path, typer.Argument(metavar="PHOTOS", help="A folder of photos, without labels.")],
    out: Annotated[Path, typer.Option(help="A folder for the network, the page and the photos' vectors.")],
    goal: Annotated[
        str,
        typer.Option(help="What is to be found: similar (the same object or kind) or copies (altered ones)."),
    ] = "similar",
    minutes: Annotated[float, typer.Option(help="Time for everything.")] = 10.0,
    start: Annotated[
        str, typer.Option(help="The network to begin with: a timm name, or a run or checkpoint of ours.")
    ] = "tf_efficientnet_lite0",
    weights: Annotated[
        str, typer.Option(help="Its weights: auto, offline, pretrained, hf-hub:OWNER/NAME or a file.")
    ] = "auto",
    image_size: Annotated[int, typer.Option(help="Side of the network's input in pixels.")] = 128,
    seed: Annotated[int, typer.Option(help="Order, views and draws follow from it.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, …")] = "auto",
) -> None:
    """Adapt a network to your own photos within a stated time, or say why the start is kept.

    Stopped, the same command goes on.

    Example: ssl-retrieval adapt photos --out adapted --minutes 10
    """
    from ssl_retrieval.adaptation.adapt import adapt as run

    made = run(
        photos,
        out,
        goal=goal,
        minutes=minutes,
        start=start,
        weights=weights,
        image_size=image_size,
        seed=seed,
        device=device,
    )
    print(f"{made.headline}: {made.reason.partition(': ')[2] or made.reason}")
    print(f"network: {made.model}")
    print(f"page: {made.page}")
    print(made.search_command if made.is_embedded else made.embed_command)


@app.command()
def embed(inputs: Inputs) -> None:
    """Embed the images of a folder or dataset.

    Example: ssl-retrieval embed configs/embed/folder.yaml data.root=photos out=runs/photos
    """
    from ssl_retrieval.embed import EmbedConfig, run_embed

    print(run_embed(_load(EmbedConfig, inputs)))


@app.command()
def evaluate(inputs: Inputs) -> None:
    """Score one representation on one task.

    Example: ssl-retrieval evaluate configs/evaluate/folder.yaml data.root=photos out=runs/photos-eval
    """
    from ssl_retrieval.compare import compare as compare_reports
    from ssl_retrieval.evaluate import EvaluateConfig
    from ssl_retrieval.evaluate import evaluate as run
    from ssl_retrieval.report.table import to_rich

    cfg = _load(EvaluateConfig, inputs)
    report = run(cfg)
    Console().print(to_rich(compare_reports([report], options=cfg.statistics)))
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
    from ssl_retrieval import config
    from ssl_retrieval.atomic import require_writable
    from ssl_retrieval.grid import CompareConfig, FinishedReports, compare_reports, run_grid
    from ssl_retrieval.report.files import read_report

    if any(item.endswith(".json") for item in inputs):
        files, overrides = _split(inputs)
        cfg = config.load(FinishedReports, None, overrides)
        cfg.statistics.check()
        target = Path(cfg.out).expanduser() if cfg.out else out or Path("comparison")
        require_writable(target)
        reports = [read_report(Path(item)) for item in files]
        _show(compare_reports(reports, target, force, cfg.statistics), target)
        return
    if out:
        inputs = [*inputs, f"out={json.dumps(str(out))}"]
    cfg = _load(CompareConfig, inputs)
    _show(run_grid(cfg), Path(cfg.out).expanduser())


@app.command()
def analyze(inputs: Inputs) -> None:
    """Look behind the scores: hubs, thresholds, doubtful labels, wins and losses, invariance.

    Example: ssl-retrieval analyze configs/analyze/folder.yaml data.root=photos out=runs/analysis
    """
    from ssl_retrieval.analyze import AnalyzeConfig
    from ssl_retrieval.analyze import analyze as run

    cfg = _load(AnalyzeConfig, inputs)
    run(cfg)
    say(f"written: {Path(cfg.out).expanduser() / 'report.html'}, and a CSV and a PNG per question")


@app.command()
def study(inputs: Inputs) -> None:
    """Measure what adapting to photos without labels does to retrieval: sets, starts, methods, settings.

    Stopped, the same command goes on; several may work on one study.

    Example: ssl-retrieval study configs/adapt/study.yaml roots.grocery=grocery out=runs/study
    """
    from ssl_retrieval.adaptation.study import study as run
    from ssl_retrieval.adaptation.study_config import StudyConfig
    from ssl_retrieval.adaptation.study_table import TABLE, TABLE_TEXT, collect

    cfg = _load(StudyConfig, inputs)
    progress = run(cfg)
    print(f"{progress.finished} of {progress.total} cells are finished")
    if progress.finished:
        collect(Path(cfg.out).expanduser())
        say(f"written: {Path(cfg.out).expanduser() / TABLE_TEXT}, {TABLE}")


@app.command()
def leakage(inputs: Inputs) -> None:
    """Find near copies between training, query and gallery images, and list what to leave out.

    Example: ssl-retrieval leakage configs/leakage/folder.yaml data.root=photos out=runs/leakage
    """
    from ssl_retrieval.leakage import LeakageConfig
    from ssl_retrieval.leakage import leakage as run

    cfg = _load(LeakageConfig, inputs)
    run(cfg)
    say(f"written: {Path(cfg.out).expanduser() / 'report.html'}, pairs.csv, summary.csv")


@app.command()
def search(
    embeddings: Annotated[Path, typer.Option(help="A folder that `embed` left.")],
    query: Annotated[Path, typer.Option(help="An image file.")],
    k: Annotated[int, typer.Option(help="How many results.")] = 10,
    html: Annotated[Path | None, typer.Option(help="Also write a page with the pictures.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, …")] = "auto",
    index: Annotated[
        str,
        typer.Option(
            metavar="FILE|FACTORY",
            help="Search approximately: a file that `index` left, or a factory string and settings.",
        ),
    ] = "",
) -> None:
    """Find the images that look most like a picture: prints score and path, best first.

    Example: ssl-retrieval search --embeddings runs/photos --query holiday.jpg --k 5 --html hits.html

    Example: ssl-retrieval search --embeddings runs/photos --query holiday.jpg --index 'HNSW32 efSearch=64'
    """
    from ssl_retrieval.find import find
    from ssl_retrieval.report.page import write_search_page

    hits = find(embeddings.expanduser(), query.expanduser(), k, device, index)
    for hit in hits:
        print(f"{hit.score:.4f}\t{hit.file}")
    if html is not None:
        write_search_page(query.expanduser(), [(hit.file, hit.score) for hit in hits], html)
        say(f"written: {html}")


@app.command("index")
def index_command(inputs: Inputs) -> None:
    """Build approximate indexes of a gallery and say what each costs in accuracy, bytes and time.

    Example: ssl-retrieval index configs/index/folder.yaml embeddings=runs/photos out=runs/photos-index
    """
    from ssl_retrieval.indexing import IndexConfig, run_index
    from ssl_retrieval.report.index_table import to_rich

    cfg = _load(IndexConfig, inputs)
    report = run_index(cfg)
    Console().print(to_rich(report.audits))
    if report.recommendation is not None:
        print(report.recommendation)
    say(f"written: {Path(cfg.out).expanduser() / 'report.html'}, table.md, table.csv, pareto.png")


@app.command()
def sweep(inputs: Inputs) -> None:
    """Find where to take a network's embedding: layer, pooling, projector, whitening, resolution, dimensions.

    The choice is made on one task, or on half of the queries, and scored on the other.

    Example: ssl-retrieval sweep configs/sweep/folder.yaml data.root=photos out=runs/photos-sweep

    Example: ssl-retrieval sweep configs/sweep/run.yaml data.root=photos model.path=runs/simclr out=runs/sweep
    """
    from ssl_retrieval.report.sweep_table import to_rich
    from ssl_retrieval.sweep import SweepConfig, run_sweep

    cfg = _load(SweepConfig, inputs)
    report = run_sweep(cfg)
    Console().print(to_rich(report.judged, report.chosen))
    print(report.how)
    print(report.recommendation)
    files = "table.md, table.csv, sweep.png, recommended.yaml"
    say(f"written: {Path(cfg.out).expanduser() / 'report.html'}, {files}")


@app.command()
def export(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="A run's folder, or one of its .safetensors files.")
    ],
    to: Annotated[Path, typer.Option(help="The folder to write.")],
    format: Annotated[str, typer.Option(help="timm, torchvision (ResNets) or plain.")] = "timm",
    interpolate: Annotated[
        float, typer.Option(help="Share of the trained weights; the rest is the start's (WiSE-FT).")
    ] = 1.0,
) -> None:
    """Write a trained encoder for use without this package, and a card that says how it came about.

    Example: ssl-retrieval export runs/simclr --to exported/simclr

    Example: ssl-retrieval export runs/simclr --to exported/halfway --interpolate 0.5
    """
    from ssl_retrieval.export import export as run

    print(run(source, to, format, interpolate))


def _load(schema: Any, inputs: list[str]) -> Any:
    from ssl_retrieval import config

    files, overrides = _split(inputs)
    if not files:
        raise UserError(f"no config among {' '.join(inputs)!r}: give the path of a yaml file too")
    # Whatever else is no key=value is a mistake that the reader of overrides explains.
    return config.load(schema, Path(files[0]).expanduser(), [*files[1:], *overrides])


def _split(inputs: list[str]) -> tuple[list[str], list[str]]:
    """Tell files from ``key=value`` texts, wherever they stand; no key holds a slash."""
    overrides = [item for item in inputs if re.match(r"[^/\\]+=", item)]
    return [item for item in inputs if item not in overrides], overrides


def _show(comparison: Any, out: Path) -> None:
    from ssl_retrieval.report.headline import headline
    from ssl_retrieval.report.table import to_rich

    Console().print(to_rich(comparison))
    for task in comparison.tasks:
        print(f"{task.task}: {' '.join(headline(task))}")
    say(f"written: {out / 'report.html'}, table.md, table.csv, chart.png")


def main() -> None:
    """Run the command line."""
    try:
        status = app(prog_name="ssl-retrieval", standalone_mode=False)
    except _UsageError as error:
        command = error.ctx.command_path if error.ctx else "ssl-retrieval"
        print_line(f"error: {error.format_message()} (see {command} --help)")
        sys.exit(2)
    except UserError as error:
        print_line(f"error: {error}")
        sys.exit(2)
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        print_line(f"error: {error.filename or 'disk'}: {error.strerror}: choose another out, or make room")
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        status = _STOPPED
    if status == _STOPPED:
        say("stopped; the same command goes on from what is saved")
        sys.exit(status)
