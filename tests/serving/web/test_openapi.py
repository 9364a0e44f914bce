"""Whatever the OpenAPI document allows or forbids is sent to the server; the answers are those that it promises."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.config import SchemathesisConfig

from m6rec.serving.web.app import make_app
from tests.serving.fake_executor import FakeExecutor
from tests.serving.web.test_app import Items

APP = make_app(FakeExecutor(), Items())
# Whatever is refused is refused with a reason of the client's: too long a body as well as a wrong field.
REFUSED = {"negative_data_rejection": {"expected-statuses": ["4xx"]}}


def document(coverage):
    """Return the server's document; ``coverage`` tries every bound of it, with bodies of many megabytes."""
    told = {"checks": REFUSED, "phases": {"coverage": {"enabled": coverage}}}
    return schemathesis.openapi.from_asgi("/openapi.json", APP, config=SchemathesisConfig.from_dict(told))


some = settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@document(coverage=False).parametrize()
@some
def test_the_server_does_what_its_document_says(case):
    case.call_and_validate(app=APP)


@pytest.mark.slow
@document(coverage=True).parametrize()
@some
def test_the_server_keeps_every_bound_of_its_document(case):
    case.call_and_validate(app=APP)


def test_every_request_has_an_example():
    document = APP.openapi()
    bodies = [
        operation["requestBody"]["content"]["application/json"]["schema"]
        for path in document["paths"].values()
        for operation in path.values()
        if "requestBody" in operation
    ]
    assert len(bodies) == 10
