"""What the headers of a failed request tell an SDK."""

import pytest

from penstock_core import errors as e
from penstock_gateway.errors import response_of


@pytest.mark.parametrize("cls", e.all_errors())
def test_the_sdk_is_told_whether_to_try_again(cls: type[e.PenstockError]) -> None:
    response = response_of(cls("x"))

    if response.status_code >= 409:
        wanted = "true" if cls.retryable else "false"
        assert response.headers["x-should-retry"] == wanted
    assert ("retry-after" in response.headers) == (response.status_code in (429, 503))


def test_the_wait_is_rounded_up_for_clients_that_read_whole_seconds() -> None:
    headers = response_of(e.Overloaded("x", retry_after_s=0.0105)).headers

    assert (headers["retry-after"], headers["retry-after-ms"]) == ("1", "11")
