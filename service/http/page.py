"""The page at `/` of the HTTP port: the models, how they do, and a playground. Its files are in `web/`, none comes from elsewhere.

The page draws its charts from `/metrics` by itself. Here is only what `/metrics` cannot say: what the models are, and the answer
to one picture together with the picture as the network saw it.
"""

import base64
import io
import json
import logging
import mimetypes
import threading
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version as installed
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from PIL import Image
from werkzeug.exceptions import HTTPException
from werkzeug.http import generate_etag
from werkzeug.routing import Map, Rule
from werkzeug.wrappers import Request, Response

from service import DISTRIBUTION
from service.engine.classifier import Classifier
from service.engine.query import Item, Query
from service.engine.repository import Repository, ServedModel
from service.errors import ConvoyError, InvalidRequest, RequestError
from service.http.rest import status_of
from service.http.server import find
from service.model.preprocessing import decode

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

log = logging.getLogger(__name__)

TOP_K = 10
MAX_LABELS = 100

_FILES = (
    "index.html", "page.css", "page.js", "live.js", "metrics.js", "playground.js", "uPlot.iife.min.js", "uPlot.min.css",
)  # fmt: skip
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self'; "
    "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class Page:
    """The WSGI application of `/` and `/page/...`; whatever else is asked for goes to `app`."""

    def __init__(self, classifier: Classifier, repository: Repository, app: "WSGIApplication") -> None:
        self._classifier = classifier
        self._repository = repository
        self._app = app
        self._decoding = threading.Lock()
        self._files = {name: files("service.http").joinpath("web", name).read_bytes() for name in _FILES}
        answers: dict[str, tuple[str, Callable[..., Response]]] = {
            "/": ("GET", lambda request: self._file(request, "index.html")),
            "/page/models": ("GET", self._models),
            "/page/classify/<model>": ("POST", self._classify),
            "/page/classify/<model>/<version>": ("POST", self._classify),
            "/page/<name>": ("GET", self._file),
        }
        self._routes = Map([Rule(path, methods=[method], endpoint=answer) for path, (method, answer) in answers.items()])

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Answers one request; see PEP 3333."""
        path: str = environ["PATH_INFO"]
        if path != "/" and not path.startswith("/page/"):
            return self._app(environ, start_response)
        try:
            answer, arguments = find(self._routes, environ)
            response: Response = answer(Request(environ, populate_request=False), **arguments)  # as in rest.py
        except ConvoyError as error:
            response = _json({"error": str(error)}, status_of(error))
        except HTTPException as error:
            response = _json({"error": f"{path}: {(error.name or 'not accepted').lower()}"}, error.code or 500)
        except Exception:
            log.exception("%s failed", path)
            response = _json({"error": "the server failed on this request; its log says why"}, 500)
        response.headers.update(_HEADERS)
        return response(environ, start_response)

    def _file(self, request: Request, name: str) -> Response:
        content = self._files.get(name)
        if content is None:
            return _json({"error": f"/page/{name}: not found"}, 404)
        response = Response(content, mimetype=mimetypes.guess_type(name)[0])
        response.set_etag(generate_etag(content))
        response.headers["Cache-Control"] = "no-cache"  # ask again each time: a new server may have new files
        return response.make_conditional(request)

    def _models(self, _: Request) -> Response:
        """What is served, and what is not and why."""
        served = self._repository.served
        return _json(
            {
                "convoy": installed(DISTRIBUTION),
                "models": [
                    {
                        "name": name,
                        "aliases": self._repository.aliases(name),
                        "versions": [_described(each) for each in versions],
                    }
                    for name, versions in sorted(served.items())
                ],
                "troubles": [entry._asdict() for entry in self._repository.index() if entry.state != "READY" or entry.reason],
            }
        )

    def _classify(self, request: Request, model: str, version: str = "") -> Response:
        """The body is an image file. Answers with labels, the phases' milliseconds, and the picture that the network saw."""
        body = request.get_data()
        if not body:
            raise InvalidRequest("the body is to be an image file")
        answer = self._classifier.classify_blocking(
            Query(model=model, version=version, items=[Item(body, encoded=True)], top_k=TOP_K)
        )
        start = time.monotonic()
        served = answer.served
        try:
            best = answer.predictions()
        except RequestError as error:
            self._classifier.record_failure(served, error)
            raise
        with self._decoding:  # one at a time: a decoded picture is large
            seen = decode(body, served.model.contract.input, served.policy.max_image_pixels)
        file = io.BytesIO()
        Image.fromarray(seen.squeeze(-1) if seen.shape[-1] == 1 else seen).save(file, "png")
        labels = served.model.labels
        response = _json(
            {
                "model": served.name,
                "version": served.version,
                "predictions": [{"label": labels[index], "probability": probability} for index, probability in best[0]],
                "phases_ms": {
                    name.removesuffix("_seconds"): 1000 * seconds
                    for name, seconds in answer.phases._asdict().items()
                    if seconds is not None
                },
                "seen": "data:image/png;base64," + base64.b64encode(file.getvalue()).decode(),
                "shape": list(seen.shape),
            }
        )
        answer.delivered(best, time.monotonic() - start)
        return response


def _described(served: ServedModel) -> dict[str, Any]:
    model = served.model
    facts: dict[str, Any] = {
        "version": served.version,
        "provider": model.provider,
        "precision": model.precision,
        "digest": model.digest,
        "threads": model.threads,
        "input": str(model.input),
        "labels": list(model.labels[:MAX_LABELS]),
        "label_count": len(model.labels),
        "max_batch_items": served.batcher.max_batch_items,
        "takes_pictures": model.has_contract,
    }
    if model.has_contract:
        training = model.contract.training
        facts |= {
            "shape": list(model.contract.input.shape),
            "fit": model.contract.input.fit,
            "network": training.network,
            "data": training.data,
            "accuracy": training.accuracy,
        }
    return facts


def _json(content: Any, status: int = 200) -> Response:
    return Response(json.dumps(content), status=status, mimetype="application/json")
