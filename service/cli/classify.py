"""`convoy classify`: classifies pictures, one or millions, with a model of running servers or of a file."""

import contextlib
import importlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from service.bulk.columns import Columns, reason
from service.bulk.counting import count
from service.bulk.explaining import explain_into
from service.bulk.lists import read_list
from service.bulk.output import Output
from service.bulk.pictures import LeftOut, path_of, scheme
from service.bulk.results_folder import ResultsFolder
from service.bulk.run import Ask, Rows, run
from service.bulk.shard import Shard, parse_shard
from service.bulk.sorting import How, Sorter
from service.bulk.sources import check, is_one_file, pictures
from service.cli.answer_text import Printed, bar_text, json_text, print_error
from service.cli.bulk_progress import progress, summary
from service.cli.connection import read_token, server_options, unreachable
from service.cli.parameters import FiniteFloat
from service.client import CallFailed, Client, ModelInfo, RequestTooLarge
from service.client.images import read_file
from service.client.messages import item_at_fault
from service.errors import UserError

TOP_K_PRINTED, TOP_K_ROWS = 5, 1
_LOADING_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line; for units and defaults see the options of `classify`."""

    paths: tuple[str, ...]
    from_file: str | None
    shard: Shard
    model: str
    model_file: Path | None
    version: str
    server: str
    top_k: int | None
    timeout: float
    as_json: bool
    output: Path | None
    resume: bool
    allow_errors: bool
    sort_into: Path | None
    sort_mode: str
    min_probability: float | None
    explain: Path | None
    token_file: Path | None
    insecure: bool
    tls_ca: Path | None
    tls_cert: Path | None
    tls_key: Path | None

    def check(self, ctx: click.Context) -> None:
        """Raises UserError for options that contradict each other, or lack another."""
        if not self.paths and self.from_file is None:
            raise click.UsageError("give a PATH, or --from-file LIST", ctx)
        if self.model_file is None and not self.model:
            raise click.UsageError("Missing option '--model' (or '--model-file FILE', without a server)", ctx)
        if self.model_file is not None:
            given = [name for name in ("server", "tls_ca", "tls_cert", "tls_key", "token_file", "insecure") if _is_given(ctx, name)]
            if given:
                raise UserError(f"--model-file asks no server: leave out --{given[0].replace('_', '-')}")
        if self.explain is not None:
            others = ("output", "resume", "sort_into", "as_json", "top_k")
            given = [name for name in others if _is_given(ctx, name)]
            if given:
                name = given[0].removeprefix("as_").replace("_", "-")
                raise UserError(f"--explain writes pictures of its own alone: leave out --{name}")
        if self.resume and self.output is None:
            raise UserError("--resume continues the rows of --output: give their file")
        if self.as_json and self.output is not None:
            raise UserError("--json prints, --output FILE.jsonl writes: give one of them")
        if self.sort_into is None and (self.min_probability is not None or _is_given(ctx, "sort_mode")):
            raise UserError("--sort-mode and --min-probability say how pictures are sorted: give --sort-into DIR")
        local = [path for path in map(path_of, self.paths) if not scheme(path)]
        if self.shard.shards > 1 and len({path.startswith("/") for path in local}) > 1:
            raise UserError("--shard goes by the paths of pictures: give PATHs that are all absolute, or all relative")
        for path in self.paths:
            check(path)
            for option, folder in (("--sort-into", self.sort_into), ("--explain", self.explain)):
                if folder is not None and not scheme(path_of(path)) and ResultsFolder(folder).holds(path_of(path)):
                    raise UserError(f"{path} is in {option} {folder}, or is it: choose another folder, which may be in a PATH")

    @property
    def one_file(self) -> str | None:
        """The path of the only picture that is asked about, if so little is asked."""
        if (
            len(self.paths) == 1
            and self.from_file is None
            and not self.writes
            and self.explain is None
            and self.shard.shards == 1
            and is_one_file(self.paths[0])
        ):
            return self.paths[0]
        return None

    @property
    def writes(self) -> bool:
        """Whether something else than printing is to be done."""
        return self.output is not None or self.sort_into is not None


def _is_given(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


class ShardType(click.ParamType[Shard]):
    """`I/N`, of `--shard`."""

    name = "shard"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Shard:
        """Reads a shard, or says what is accepted."""
        try:
            return value if isinstance(value, Shard) else parse_shard(str(value))
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)


@click.command()
@click.argument("paths", nargs=-1, metavar="PATH...")
@partial(server_options, model_required=False)
@click.option("--model-file", type=click.Path(path_type=Path), metavar="FILE",
              help="Classify in this process, without a server: a model.onnx, a model's folder, or a repository.")  # fmt: skip
@click.option("--from-file", metavar="LIST", help="File with more paths, one a line or with zero bytes between them; - is stdin.")
@click.option("--shard", type=ShardType(), metavar="I/N", default=Shard(),
              help="Take a share of the pictures, by their names: N runs, I from 0, take each once.")  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE",
              help="Write a row for each picture: .csv, .jsonl or .parquet (extra `parquet`).")  # fmt: skip
@click.option(
    "--resume",
    is_flag=True,
    help="Continue an output that is there: pictures with a row are left out, those with an error tried again.",
)
@click.option("--allow-errors", is_flag=True, help="Exit with 0 though pictures cannot be classified: their rows say so.")
@click.option("--sort-into", type=click.Path(path_type=Path), metavar="DIR", help="Put each picture into DIR/<its label>.")
@click.option("--sort-mode", type=click.Choice([how.value for how in How]), default=How.COPY.value, show_default=True,
              help="How; what is in an archive or at a URL is copied.")  # fmt: skip
@click.option("--min-probability", type=FiniteFloat(0, 1), help="Put a picture whose label is less probable into DIR/unsure.")
@click.option("--explain", type=click.Path(path_type=Path), metavar="DIR",
              help="Write a picture of what spoke for the answer to each: DIR/NAME.png, red for it, blue against it.")  # fmt: skip
@click.option("--top-k", type=click.IntRange(1, 2**31 - 1), show_default=f"{TOP_K_PRINTED}; with --output {TOP_K_ROWS}",
              help="How many labels an image gets.")  # fmt: skip
@click.option("--timeout", type=FiniteFloat(0, 1e6, min_open=True), default=30.0, show_default=True,
              help="Seconds to wait for the answer to one picture; of several, for a server that loads or restarts.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line and image.")
@click.pass_context
def classify(ctx: click.Context, /, **options: Any) -> None:
    """Classify pictures with a model of a running server, or of a file.

    A PATH is a picture, a folder, a glob in quotes ('**' is any number of folders), a tar or zip archive, or a URL (https://;
    s3://, gs:// and others of fsspec: extra `remote`). In folders and archives files with the suffix of a picture are taken. A
    picture that cannot be classified is reported, the others are still classified, and the exit code is then 2.

    \b
    Examples:
      convoy classify cat.jpg --model pets
      convoy classify photos backup.zip 'cards/**/*.jpg' --model pets --output pets.csv
      find /photos -name '*.jpg' -print0 | convoy classify --from-file - --model pets --output pets.parquet

    \b
    The photos of a marathon in a folder for each runner, from three servers, and again after an interruption:
      convoy classify marathon --model runners --server 10.0.0.1:8001 --server 10.0.0.2:8001 --server 10.0.0.3:8001 \\
          --output marathon.csv --sort-into by-runner --sort-mode link --min-probability 0.8 --resume
    """  # noqa: D301 - \b keeps click from re-wrapping the lines
    chosen = Options(**options)
    chosen.check(ctx)
    output = Output(chosen.output, resume=chosen.resume) if chosen.output is not None else None
    with _client(chosen) as client:
        if chosen.explain is not None:
            _explain_all(client, chosen, chosen.explain)
        elif chosen.one_file is not None:
            _classify_one(client, chosen, chosen.one_file)
        elif chosen.writes:
            _classify_into(client, chosen, output)
        else:
            _print_all(client, chosen)


def _client(options: Options) -> Any:
    if options.model_file is not None:
        return importlib.import_module("service").Local(options.model_file)  # needs the packages of a server: imported when used
    tls: dict[str, Any] = {"tls_ca": options.tls_ca, "tls_cert": options.tls_cert, "tls_key": options.tls_key}
    token = read_token(options.token_file)
    return Client(options.server, timeout_seconds=options.timeout, token=token, insecure=options.insecure, **tls)


def _classify_one(client: Any, options: Options, path: str) -> None:
    top_k = options.top_k or TOP_K_PRINTED
    try:
        answer = client.classify([read_file(path)], model=options.model, version=options.version, top_k=top_k)
    except CallFailed as error:
        raise _explained(error, options, path) from None
    click.echo((json_text if options.as_json else bar_text)(path, answer))


def _print_all(client: Any, options: Options) -> None:
    info = _described(client, options, options.version)
    printed = Printed(as_json=options.as_json)
    found = pictures(_sources(options), LeftOut(), takes=options.shard.takes)
    run(found, _ask(client, options, info, options.top_k or TOP_K_PRINTED), printed)
    _check(options, printed.classified, printed.errors)


def _explain_all(client: Any, options: Options, folder: Path) -> None:
    info = _described(client, options, options.version)
    explained = errors = 0
    results = ResultsFolder(folder)
    found = pictures(_sources(options), LeftOut(), results.is_it, options.shard.takes)
    sources = (picture for picture in found if picture.path is None or not results.holds(picture.path))
    try:
        for picture, explanation, path in explain_into(folder, client, sources, info.model, options.version, options.timeout):
            name = picture.path or picture.name
            if isinstance(explanation, str):
                errors += 1
                click.echo(f"convoy: {name}: {explanation}", err=True)
            else:
                explained += 1
                click.echo(f"{name}  {explanation.prediction.label}  {explanation.prediction.probability:.1%}  {path}")
    except CallFailed as error:
        raise unreachable(options.server, error) or UserError(str(error)) from None
    _check(options, explained, errors)


def _classify_into(client: Any, options: Options, output: Output | None) -> None:
    """All answers are of one version, that of an earlier run's rows if there are some and no other was asked for."""
    earlier = output.earlier if output is not None and not options.version else None
    info = _described(client, options, earlier[1] if earlier is not None else options.version)
    columns = Columns(info, options.top_k or TOP_K_ROWS, sorting=options.sort_into is not None)
    sorter = Sorter(options.sort_into, How(options.sort_mode), options.min_probability or 0.0) if options.sort_into else None
    skip = sorter.results.is_it if sorter is not None else lambda _: False
    rows, left_out, started = Rows(output, sorter, columns, print_error), LeftOut(), time.monotonic()
    done = rows.open()
    before, where = len(done), f"; rows in {options.output}" if output is not None else ""
    total = partial(count, options.paths, skip, options.shard.takes) if options.from_file is None else lambda: None
    try:
        with _terminated_as_interrupted(), progress(before, total) as advance:
            sources = _sources(options, sorter.results.holds if sorter is not None else lambda _: False, left_out)
            found = pictures(sources, left_out, skip, options.shard.takes)
            run(found, _ask(client, options, info, columns.asked_top_k), rows, done, advance)
    except BaseException:
        where += "; --resume continues them" if output is not None else ""
        raise
    finally:
        rows.close()
        summary(rows, before, time.monotonic() - started, left_out, where)
    _check(options, rows.classified, rows.errors, sorter.not_removed if sorter is not None else 0)


def _sources(
    options: Options, is_result: Callable[[str], bool] = lambda _: False, left_out: LeftOut | None = None
) -> Iterator[str]:
    """The paths of the command line, then those of the list: it may be all that a search has found, results among them."""
    yield from options.paths
    for path in read_list(options.from_file) if options.from_file is not None else ():
        if not is_result(path_of(path)):
            yield path
        elif left_out is not None:
            left_out.counts["in the folder of --sort-into"] += 1


def _described(client: Any, options: Options, version: str) -> ModelInfo:
    """The model. Waits for a server that is loading; raises UserError if there is none."""
    until = time.monotonic() + options.timeout
    while True:
        try:
            info: ModelInfo = client.model(options.model, version)
        except CallFailed as error:
            explained = unreachable(options.server, error)
            if explained is not None or error.code != "UNAVAILABLE" or time.monotonic() >= until:
                raise explained or UserError(str(error)) from None
            time.sleep(_LOADING_SECONDS)
        else:
            return info


def _ask(client: Any, options: Options, info: ModelInfo, top_k: int) -> Ask:
    def ask(images: Iterator[str | bytes]) -> Any:
        try:
            yield from client.classify_many(
                images, model=info.model, version=info.version, top_k=top_k, wait_seconds=options.timeout
            )
        except CallFailed as error:
            raise unreachable(options.server, error) or UserError(str(error)) from None

    return ask


def _check(options: Options, classified: int, errors: int, not_removed: int = 0) -> None:
    wrong = []
    if errors and not options.allow_errors:
        wrong.append(f"{errors} of {classified + errors} images could not be classified")
    if not_removed:
        wrong.append(f"{not_removed} of the pictures that are to be moved could not be removed from their old place")
    if wrong:
        raise UserError("; ".join(wrong))


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM, as from Kubernetes, ends as Ctrl-C does: what there is is written."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: object) -> None:
        sys.exit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _explained(error: CallFailed, options: Options, path: str) -> UserError:
    """The error as the user sees it: with the file's path where the server named the item."""
    if isinstance(error, RequestTooLarge) or item_at_fault(error) is not None:
        return UserError(f"{path}: {reason(error)}")
    return unreachable(options.server, error) or UserError(str(error))
