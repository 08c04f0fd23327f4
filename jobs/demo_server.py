"""An S3 server on loopback for the demo, so that ``vxl demo`` ingests from a bucket without any account.

Owns starting, filling and stopping it. The server is moto's, in a thread of this process, on a free port of 127.0.0.1;
its content lives in memory and ends with it. moto and boto3 are imported when the server is started.
"""

from __future__ import annotations

import logging
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from moto.server import ThreadedMotoServer

REGION = "us-east-1"
_LOGGER_NAME = "werkzeug"


class LoopbackS3:
    """A context manager that serves S3 on 127.0.0.1 while it is open.

    ``env`` is what other processes need to reach it; nothing is set in this process. Raises ``ConfigError`` naming the
    extra ``demo`` when moto is missing.
    """

    def __init__(self) -> None:
        self._server: ThreadedMotoServer | None = None
        self._log_level = logging.NOTSET
        self._endpoint = ""

    def __enter__(self) -> LoopbackS3:
        if self._server is not None:
            raise RuntimeError("this server is already running")
        try:
            from moto.server import ThreadedMotoServer
        except ImportError as exc:
            raise ConfigError(
                "the S3 server of the demo needs the extra 'demo': pip install 'vxl-archive[demo]'"
            ) from exc
        log = logging.getLogger(_LOGGER_NAME)
        self._log_level = log.level
        log.setLevel(logging.ERROR)
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        self._server, self._endpoint = server, f"http://{host}:{port}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.stop()
        logging.getLogger(_LOGGER_NAME).setLevel(self._log_level)

    @property
    def endpoint_url(self) -> str:
        """The server's address, such as ``http://127.0.0.1:41873``."""
        if self._server is None:
            raise RuntimeError("the server is not running")
        return self._endpoint

    @property
    def env(self) -> dict[str, str]:
        """Environment variables with which boto3 in another process finds this server and its made-up credentials."""
        return {
            "AWS_ACCESS_KEY_ID": "demo",
            "AWS_SECRET_ACCESS_KEY": "demo",
            "AWS_DEFAULT_REGION": REGION,
            "AWS_REGION": REGION,
            "AWS_ENDPOINT_URL_S3": self.endpoint_url,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def upload_folder(self, folder: str | Path, bucket: str, prefix: str = "") -> list[str]:
        """Put every file below ``folder`` into ``bucket`` (made when missing); gives the keys, sorted.

        A key is ``prefix`` and the file's path inside the folder, with forward slashes. Hidden files are left out.
        Raises ``UsageError`` when there is no such folder.
        """
        root = Path(folder)
        if not root.is_dir():
            raise UsageError(f"no such folder: {root}")
        client = self._client()
        client.create_bucket(Bucket=bucket)
        start = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        files = {start + path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
        keys = sorted(key for key, path in files.items() if not _is_hidden(path.relative_to(root)))
        for key in keys:
            with files[key].open("rb") as body:
                client.put_object(Bucket=bucket, Key=key, Body=body)
        return keys

    def _client(self) -> Any:
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            aws_access_key_id="demo",
            aws_secret_access_key="demo",
            region_name=REGION,
            config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 2}, proxies={}),
        )


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
