"""The page at `/` of the HTTP port: the models, live charts, and a playground. All its files are in `web/`.

The page draws its charts from `/metrics`. This module serves the files, the list of models, and the answer to one image together
with the image as the model got it. Versions are texts in its JSON: a number of JavaScript holds only integers up to 2^53 exactly.
"""

import base64
import io
import mimetypes
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
import werkzeug.exceptions
from numpy.typing import NDArray
from PIL import Image
from werkzeug.http import generate_etag
from werkzeug.routing import Map, Rule
from werkzeug.wrappers import Request, Response

from service import convoy_version
from service.engine.answer import Answer
from service.engine.classifier import Classifier
from service.engine.explain import Explainer, method_of
from service.engine.query import Item, Query
from service.engine.reply import reply_to
from service.engine.repository import Repository
from service.engine.served_version import ServedVersion
from service.engine.top_k import Results
from service.errors import InvalidRequest
from service.http.principals import metadata_of, principal_of
from service.http.responses import json_response, response_to_error
from service.http.server import PAGE_CLASSIFY, PAGE_CLASSIFY_VERSION, PAGE_EXPLAIN, PAGE_EXPLAIN_VERSION, match_route
from service.model.scores import described

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

TOP_K = 10
MAX_LABELS = 100
EXPLAIN_SECONDS = 60.0
"""How long the page waits for an explanation: nobody can cancel it there."""

_FILES = (
    "index.html", "page.css", "page.js", "ask.js", "live.js", "metrics.js", "playground.js", "uPlot.iife.min.js", "uPlot.min.css",
)  # fmt: skip
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self'; "
    "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}


class Page:
    """The WSGI application of `/` and `/page/...`; all other paths go to `app`."""

    def __init__(self, classifier: Classifier, explainer: Explainer, repository: Repository, app: "WSGIApplication") -> None:
        self._classifier = classifier
        self._explainer = explainer
        self._repository = repository
        self._app = app
        self._files = {name: files("service.http").joinpath("web", name).read_bytes() for name in _FILES}
        handlers: dict[str, tuple[str, Callable[..., Response]]] = {
            "/": ("GET", lambda request: self._file(request, "index.html")),
            "/page/models": ("GET", self._models),
            PAGE_CLASSIFY: ("POST", self._classify),
            PAGE_CLASSIFY_VERSION: ("POST", self._classify),
            PAGE_EXPLAIN: ("POST", self._explain),
            PAGE_EXPLAIN_VERSION: ("POST", self._explain),
            "/page/<name>": ("GET", self._file),
        }
        rules = [Rule(path, methods=[method], endpoint=handler) for path, (method, handler) in handlers.items()]
        self._routes = Map(rules, merge_slashes=False)

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Answers one request; see PEP 3333."""
        path: str = environ["PATH_INFO"]
        if path != "/" and not path.startswith("/page/"):
            return self._app(environ, start_response)
        try:
            handler, arguments = match_route(self._routes, environ)
            response: Response = handler(Request(environ, populate_request=False), **arguments)  # as in rest.py
        except Exception as error:  # noqa: BLE001 - any error is the response to this request
            response = response_to_error(error, environ)
        response.headers.update(_HEADERS)
        return response(environ, start_response)

    def _file(self, request: Request, name: str) -> Response:
        content = self._files.get(name)
        if content is None:
            raise werkzeug.exceptions.NotFound
        response = Response(content, mimetype=mimetypes.guess_type(name)[0])
        response.set_etag(generate_etag(content))
        response.headers["Cache-Control"] = "no-cache"  # revalidate each time: a new server may have new files
        return response.make_conditional(request)

    def _models(self, _: Request) -> Response:
        """The served versions, and those that are not served, with the reason."""
        served = self._repository.served
        index = self._repository.index()
        idle: dict[str, list[str]] = {}
        for entry in index:
            if entry.state == "IDLE":
                idle.setdefault(entry.name, []).append(entry.number)
        return json_response(
            {
                "convoy": convoy_version(),
                "models": [
                    {
                        "name": name,
                        "aliases": {alias: str(version) for alias, version in self._repository.aliases(name).items()},
                        "shares": {str(version): share for version, share in self._repository.routing(name).shares().items()},
                        "idle": idle.get(name, []),
                        "versions": [_version_info(each) for each in versions],
                    }
                    for name, versions in sorted(served.items())
                ],
                "troubles": [
                    entry._asdict() | {"version": entry.number}
                    for entry in index
                    if entry.state not in ("READY", "IDLE") or entry.reason
                ],
            }
        )

    def _classify(self, request: Request, model: str, version: str = "") -> Response:
        """The body is an image file. The reply has labels, milliseconds of the phases, and the image as the model's input.

        That is null for a model whose graph decodes.
        """
        query = _query(request, model, version)
        return reply_to(self._classifier, query, self._write, query.items[0].data)

    def _explain(self, request: Request, model: str, version: str = "") -> Response:
        """The body is an image file. The reply has a picture of what spoke for the best label."""
        query = _query(request, model, version)._replace(deadline=time.monotonic() + EXPLAIN_SECONDS)
        answer, [found] = self._explainer.explain_blocking(query, "")
        answer.delivered(answer.best(), 0.0)
        return json_response(
            {
                "label": answer.served.model.labels[found.label_index],
                "method": found.method,
                "overlay": _data_url(found.overlay),
            }
        )

    def _write(self, answer: Answer, best: Results, image_file: bytes) -> Response:
        answer.check_no_nan(best)
        served = answer.served
        seen = self._classifier.decode(served, image_file) if served.model.has_contract else None
        labels, heads = served.model.labels, served.model.heads
        others = zip(heads[1:], answer.best_of_other_heads(), strict=True) if len(heads) > 1 else ()
        return json_response(
            {
                "model": served.name,
                "version": str(served.version),
                "head": heads[0].name if len(heads) > 1 else None,
                "predictions": _named(labels, best[0]),
                "threshold": heads[0].threshold if heads else None,
                "heads": [
                    {"name": head.name, "threshold": head.threshold, "predictions": _named(head.labels, found[0])}
                    for head, found in others
                ],
                "phases_ms": {
                    name.removesuffix("_seconds"): 1000 * seconds
                    for name, seconds in answer.phases._asdict().items()
                    if seconds is not None
                },
                "seen": None if seen is None else _data_url(_png(seen)),
                "shape": None if seen is None else list(seen.shape),
            }
        )


def _png(seen: NDArray[Any]) -> bytes:
    """The picture, [H,W,C]."""
    png = io.BytesIO()
    shown = np.rint(seen).astype(np.uint8)
    Image.fromarray(shown.squeeze(-1) if shown.shape[-1] == 1 else shown).save(png, "png")
    return png.getvalue()


def _query(request: Request, model: str, version: str) -> Query:
    body = request.get_data()
    if not body:
        raise InvalidRequest("the body must be an image file")
    return Query(
        model=model,
        version=version,
        items=[Item(body, encoded=True)],
        top_k=TOP_K,
        principal=principal_of(request.environ),
        metadata=metadata_of(request),
    )


def _data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _named(labels: Sequence[str], found: Sequence[tuple[int, float]]) -> list[dict[str, Any]]:
    return [{"label": labels[index], "probability": probability} for index, probability in found]


def _version_info(served: ServedVersion) -> dict[str, Any]:
    model = served.model
    info: dict[str, Any] = {
        "version": str(served.version),
        "provider": model.provider,
        "precision": model.precision,
        "digest": model.digest,
        "signer": model.signer,
        "threads": model.threads,
        "input": str(model.input),
        "labels": list(model.labels[:MAX_LABELS]),
        "label_count": len(model.labels),
        "labels_are_numbers": model.labels_are_numbers,
        "max_batch_items": served.batcher.max_batch_items,
        "takes_pictures": model.takes_pictures,
        "explains": method_of(served),
    }
    if model.score_kind is not None:
        activation, scores = described(model.score_kind)
        info |= {"scores": scores, "activation": activation}
    if model.has_contract:
        contract = model.contract
        info |= {
            "shape": list(contract.input.shape),
            "fitting": contract.input.fitting,
            "data": contract.measured.data,
            "accuracy": contract.measured.accuracy,
        }
        if contract.training:
            info["network"] = contract.training.network
        if contract.origin:
            info |= {"source": contract.origin.source, "pixels": contract.origin.pixels or "not proved"}
    return info
