"""TLS on the way to the bus: which certificates to trust, and which to show."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from .errors import ConfigError

if TYPE_CHECKING:
    import ssl


class Tls(msgspec.Struct, frozen=True, kw_only=True):
    """Paths of PEM files. The server's certificate must be for the host that the URL names."""

    ca: str = ""
    """Whom to trust; empty: the authorities that the system trusts."""

    cert: str = ""
    """Our own certificate, where the server asks for one."""

    key: str = ""
    """Its private key."""

    pinned: str = ""
    """The very certificate that the server must show, whatever host it is for: that of our own embedded server, which
    is reached here under an address that no authority signs for."""

    def files(self) -> Iterator[str]:
        yield from filter(None, (self.ca, self.cert, self.key, self.pinned))

    def absolute(self) -> Tls:
        """For a process that runs in another folder. Raises ConfigError for a file that is not there."""
        return Tls(**{name: absolute(path) for name, path in msgspec.structs.asdict(self).items()})

    def context(self) -> ssl.SSLContext:
        """Raises ConfigError, naming the files, for what cannot be used."""
        import ssl

        try:
            context = ssl.create_default_context(cafile=self.pinned or self.ca or None)
            if self.pinned:
                context.check_hostname = False
                context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            if self.cert:
                context.load_cert_chain(self.cert, self.key or None)
        except (OSError, ssl.SSLError) as error:
            files = ", ".join(self.files())
            raise ConfigError(f"the TLS files {files} cannot be used: {error}", hint="they are PEM files") from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context


def absolute(path: str) -> str:
    """`path` as it is from any folder, if it is one. Raises ConfigError where there is no such file."""
    if not path:
        return ""
    file = Path(path).expanduser().absolute()
    if not file.is_file():
        raise ConfigError(f"there is no file {file}")
    return str(file)


NO_TLS_FILES = Tls()
