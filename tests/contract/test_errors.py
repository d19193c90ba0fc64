"""Every error has a status, and comes back from it as itself."""

import pytest
from google.rpc import error_details_pb2

from penstock_core import errors as e
from penstock_core.rpc.status import CODES, from_status, to_status


@pytest.mark.parametrize("cls", e.all_errors(), ids=lambda c: c.__name__)
def test_every_error_survives_the_wire(cls: type[e.PenstockError]) -> None:
    error = cls("what happened")
    error.metadata = {"prompt_tokens": "12"}

    back = from_status(to_status(error))

    assert type(back) is cls
    assert (back.message, back.metadata) == ("what happened", {"prompt_tokens": "12"})


def test_slugs_are_unique_and_every_class_has_a_code() -> None:
    classes = e.all_errors()

    assert len({cls.slug for cls in classes}) == len(classes)
    assert set(CODES) == set(classes)


def test_details_carry_field_delay_and_quota() -> None:
    invalid = from_status(to_status(e.InvalidRequest("bad", field="sampling.top_p")))
    busy = from_status(to_status(e.Overloaded("full", retry_after_s=1.5)))
    quota = from_status(to_status(e.QuotaExceeded("spent", subject="tokens/min", retry_after_s=2)))

    assert isinstance(invalid, e.InvalidRequest)
    assert invalid.field == "sampling.top_p"
    unable = from_status(to_status(e.NotSupported("cannot", field="chat.tool_choice")))
    assert isinstance(unable, e.NotSupported)
    assert unable.field == "chat.tool_choice"
    assert isinstance(busy, e.Overloaded)
    assert busy.retry_after_s == 1.5
    assert isinstance(quota, e.QuotaExceeded)
    assert (quota.subject, quota.retry_after_s) == ("tokens/min", 2.0)


def test_a_foreign_status_becomes_the_nearest_error() -> None:
    status = to_status(e.Unavailable("gone"))
    info = error_details_pb2.ErrorInfo(reason="SOMETHING", domain="elsewhere")
    status.ClearField("details")
    status.details.add().Pack(info)

    assert type(from_status(status)) is e.Unavailable
