"""What a request may call a model and its adapters."""

import pytest

from penstock_core.errors import InvalidRequest, NotFound
from penstock_core.requests.model_names import Catalogue, Named, Served

CODER = Served(("coder", "default"), "r1", ("sql", "css", "both"))
WRITER = Served(("org/writer:7b",), "r2", ("poet", "both", "coder"))
CATALOGUE = Catalogue([CODER, CODER, WRITER])


@pytest.mark.parametrize(
    ("name", "adapter", "meant"),
    [
        ("coder", "", Named("coder")),
        ("coder", "sql", Named("coder", "sql")),
        ("default:css", "", Named("default", "css")),
        ("sql", "", Named("coder", "sql")),
        ("sql", "sql", Named("coder", "sql")),
        ("org/writer:7b", "", Named("org/writer:7b")),
        ("org/writer:7b:poet", "", Named("org/writer:7b", "poet")),
        ("org/writer:7b:coder", "", Named("org/writer:7b", "coder")),
        ("org/writer:7b", "both", Named("org/writer:7b", "both")),
        ("nobody", "", Named("nobody")),
        ("nobody", "sql", Named("nobody", "sql")),
        ("nobody:sql", "", Named("nobody:sql")),
    ],
)
def test_a_name_means_a_model_or_an_adapter_of_one(name: str, adapter: str, meant: Named) -> None:
    assert CATALOGUE.read(name, adapter) == meant


@pytest.mark.parametrize(
    ("name", "adapter", "error", "said"),
    [
        ("coder:poet", "", NotFound, "'coder' has no adapter 'poet'"),
        ("coder", "poet", NotFound, "'coder' has no adapter 'poet'"),
        ("sql", "css", InvalidRequest, "two adapters"),
        ("both", "", InvalidRequest, "coder:both, org/writer:7b:both"),
    ],
)
def test_a_name_that_means_nothing_or_too_much_is_refused(
    name: str, adapter: str, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        CATALOGUE.read(name, adapter)


def test_every_adapter_is_listed_under_a_name_that_means_it() -> None:
    listed = CATALOGUE.adapters()

    assert list(listed) == [
        "coder:both", "css", "org/writer:7b:both", "org/writer:7b:coder", "poet", "sql",
    ]  # fmt: skip
    assert all(CATALOGUE.read(name) == named for name, named in listed.items())
