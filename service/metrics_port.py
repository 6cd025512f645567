"""The metrics of a process that serves no API: `remit reconcile`, `remit work`."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import start_http_server

from service.serving import PortInUseError
from service.settings import Settings


@contextmanager
def metrics_of(settings: Settings) -> Iterator[None]:
    """Serve the metrics of this process, where it is told a port.

    Raises:
        PortInUseError: when another process listens there.
    """
    if settings.metrics_port is None:
        yield
        return
    try:
        server, thread = start_http_server(settings.metrics_port, settings.metrics_host)
    except OSError as error:
        raise PortInUseError(
            f"{settings.metrics_host}:{settings.metrics_port} cannot be listened on ({error.strerror});"
            " choose another with REMIT_METRICS_HOST and REMIT_METRICS_PORT"
        ) from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
