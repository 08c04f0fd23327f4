"""S3 as this program uses it: settings, a client made from them, and its errors. The only module that knows boto3.

Credentials come from boto3's own chain (environment, profile, instance role) and are never stored or logged.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

DEFAULT_REGION = "us-east-1"
CONNECTIONS = 16
"""Most connections of one client: reads in flight, an upload's parts, and a renewal of the lease."""
_REFUSED = ("PreconditionFailed", "412", "ConditionalRequestConflict", "409")
_MISSING = ("NoSuchKey", "404", "NoSuchUpload")
_CAUSES = {
    "NoSuchBucket": "there is no bucket {bucket!r}",
    "AccessDenied": "these credentials may not do this in bucket {bucket!r} (AccessDenied)",
    "AllAccessDisabled": "access to bucket {bucket!r} is switched off",
    "InvalidAccessKeyId": "the server does not know this access key",
    "SignatureDoesNotMatch": "the secret key does not fit the access key",
    "ExpiredToken": "the credentials have expired",
    "PermanentRedirect": "bucket {bucket!r} lies in another region: set the region",
    "AuthorizationHeaderMalformed": "bucket {bucket!r} lies in another region: set the region",
}


class S3Settings(BaseModel):
    """How S3 is reached. No credentials here."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint_url: str | None = Field(
        default=None, description="address of an S3-compatible server; null: AWS_ENDPOINT_URL, else Amazon"
    )
    region: str | None = Field(
        default=None, description="region name; null: as the AWS configuration says, else us-east-1"
    )
    profile: str | None = Field(
        default=None, description="named profile of the AWS configuration; null: the default chain"
    )
    connect_timeout_s: float = Field(default=5.0, gt=0, description="seconds to wait for a connection")
    read_timeout_s: float = Field(default=60.0, gt=0, description="seconds to wait for the next bytes of an answer")
    attempts: int = Field(default=3, ge=1, description="tries of one request, the first included")
    check_timeout_s: float = Field(
        default=3.0, gt=0, description="connection and read limit in seconds of the check before work"
    )
    part_bytes: int = Field(
        default=32 * 1024 * 1024,
        ge=5 * 1024 * 1024,
        description="bytes of one part of an upload; smaller files are one",
    )
    lease_s: float = Field(
        default=60.0,
        gt=0,
        description="seconds after which the writer lease of an archive on S3 is free if its holder did not renew it",
    )


class S3Error(Exception):
    """A request that failed, with its cause in one line."""

    def __init__(self, cause: str, code: str = "") -> None:
        super().__init__(cause)
        self.cause = cause
        self.code = code
        self.is_missing = code in _MISSING
        """There is no such object."""
        self.is_refused = code in _REFUSED
        """The request's condition does not hold."""


class S3Client:
    """Makes the boto3 client when it is first needed, so that its owner can be sent to another process."""

    def __init__(self, settings: S3Settings) -> None:
        self._settings = settings
        self._made: tuple[Any, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_settings": self._settings, "_made": None}

    def get(self) -> Any:
        """The boto3 client; threads may share it."""
        return self._session_and_client()[1]

    def connection_options(self) -> dict[str, str]:
        """How the same bucket is reached by the tables' library: endpoint, region, and credentials of this moment.

        Raises ``S3Error`` where there are no credentials.
        """
        with s3_errors():
            session, client = self._session_and_client()
            credentials = session.get_credentials()
            if credentials is None:
                raise S3Error(_NO_CREDENTIALS)
            frozen = credentials.get_frozen_credentials()
        endpoint = str(client.meta.endpoint_url)
        is_amazon = (urlsplit(endpoint).hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn"))
        options = {
            **({} if is_amazon else {"aws_endpoint": endpoint}),
            "allow_http": str(endpoint.startswith("http://")).lower(),
            "aws_region": client.meta.region_name,
            "aws_access_key_id": frozen.access_key,
            "aws_secret_access_key": frozen.secret_key,
            "connect_timeout": f"{self._settings.connect_timeout_s:g}s",
            "client_max_retries": str(self._settings.attempts),
        }
        return options if frozen.token is None else {**options, "aws_session_token": frozen.token}

    def _session_and_client(self) -> tuple[Any, Any]:
        if self._made is None:
            import boto3
            from botocore.config import Config

            settings = self._settings
            session = boto3.session.Session(profile_name=settings.profile, region_name=settings.region)
            client = session.client(
                "s3",
                endpoint_url=settings.endpoint_url,
                region_name=session.region_name or DEFAULT_REGION,
                config=Config(
                    connect_timeout=settings.connect_timeout_s,
                    read_timeout=settings.read_timeout_s,
                    retries={"total_max_attempts": settings.attempts, "mode": "standard"},
                    max_pool_connections=CONNECTIONS,
                ),
            )
            self._made = session, client
        return self._made


_NO_CREDENTIALS = "no credentials found (set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role)"


@contextlib.contextmanager
def s3_errors(bucket: str = "") -> Iterator[None]:
    """Turn what boto3 raises, and what breaks on the way, into ``S3Error``."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as exc:
        code = str(exc.response.get("Error", {}).get("Code", "unknown"))
        cause = _CAUSES.get(code, "the server answered {code}").format(bucket=bucket, code=code)
        raise S3Error(cause, code) from exc
    except BotoCoreError as exc:
        raise S3Error(_botocore_cause(exc)) from exc
    except OSError as exc:
        raise S3Error(_first_line(exc)) from exc
    except ValueError as exc:
        raise S3Error(f"the S3 address cannot be used: {_first_line(exc)}") from exc


def _botocore_cause(exc: Exception) -> str:
    from botocore import exceptions

    if isinstance(exc, exceptions.NoCredentialsError):
        return _NO_CREDENTIALS
    if isinstance(exc, exceptions.EndpointConnectionError | exceptions.ConnectTimeoutError):
        return f"the S3 server does not answer: {_first_line(exc)}"
    if isinstance(exc, exceptions.ParamValidationError):
        return "this is not a valid bucket name or key"
    return _first_line(exc)


def _first_line(exc: Exception) -> str:
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return lines[0] if lines else type(exc).__name__
