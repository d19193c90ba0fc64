"""The CPU kernel for tests, or what this machine lacks for one."""

from penstock_core.errors import NotSupported
from penstock_engine.native.fused.library import Library, open_library

_LACKS = ("the kernel needs", "no C++ compiler")


def kernel_or_lack() -> Library | str:
    """The kernel's library, or why none can be had here.

    Raises:
        NotSupported: a compiler is there and the kernel does not compile or load: a defect, which a test that
            skips would hide.
    """
    try:
        return open_library()
    except NotSupported as error:
        if error.message.startswith(_LACKS):
            return error.message
        raise
