"""Archives that loaders unpack for us: no member may leave the folder that it is unpacked into."""

import contextlib
import tarfile
from collections.abc import Iterator


@contextlib.contextmanager
def kept_inside() -> Iterator[None]:
    """Refuse tar members that leave their folder, or are no plain files, inside the block, whoever unpacks them.

    torchvision and learn2learn call `extractall` without a filter, which before Python 3.14 trusts every name. Members
    of zip files lose `..` and leading slashes in zipfile itself.

    Raises:
        tarfile.FilterError: from whatever unpacks, naming the member.

    Source: PEP 706.
    """
    before = tarfile.TarFile.__dict__.get("extraction_filter")
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    try:
        yield
    finally:
        if before is None:
            del tarfile.TarFile.extraction_filter
        else:
            tarfile.TarFile.extraction_filter = before
