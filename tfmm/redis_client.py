"""Connections to Redis that outlast a restart of the server."""

from __future__ import annotations

import os
import time
import typing
import urllib.parse

from tfmm import extras, registered

extras.verify("stream", "redis")
import redis  # noqa: E402
import redis.backoff  # noqa: E402
import redis.retry  # noqa: E402

PASSWORD = "REDISCLI_AUTH"  # environment variable, as redis-cli reads it
ERRORS = (redis.exceptions.RedisError, ConnectionError, TimeoutError)  # of the server or the way to it
ResponseError = redis.exceptions.ResponseError
VALUE_ERRORS = (redis.exceptions.DataError,)  # among them: what a command cannot hold
_REFUSED = (redis.exceptions.AuthenticationError, redis.exceptions.AuthorizationError)
_WAIT_S = 60.0  # while the server is away


class _Patient(redis.Redis):
    """A client whose commands wait for a server that is away or loading."""

    def execute_command(self, *arguments: typing.Any, **options: typing.Any) -> typing.Any:
        end, wait_s = time.monotonic() + _WAIT_S, 0.02
        while True:
            try:
                return super().execute_command(*arguments, **options)
            except _REFUSED:
                raise
            except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, OSError):
                if time.monotonic() > end:
                    raise
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, 1.0)


def connect(url: str, own: typing.Collection[str]) -> tuple[typing.Any, dict[str, str]]:
    """Opens a client whose commands wait for up to a minute while the server is away or loading.

    Args:
        url: `redis://` or `rediss://`; the password may stand in the environment variable REDISCLI_AUTH.
        own: names of the options of the URL's that are the caller's; others are redis-py's.
    Returns:
        The client, and the caller's options.
    Raises:
        ValueError: an option that is unknown, or the server knows another password.
        redis.exceptions.RedisError: the server cannot be reached, or refuses.
    """
    parts, shown = urllib.parse.urlsplit(url), registered.without_password(url)
    found = urllib.parse.parse_qsl(parts.query)
    rest = [pair for pair in found if pair[0] not in own]
    once = redis.retry.Retry(redis.backoff.NoBackoff(), 0)
    options: dict[str, typing.Any] = {"retry": once, "socket_timeout": 30.0, "protocol": 2}
    if parts.password is None and os.environ.get(PASSWORD):
        options["password"] = os.environ[PASSWORD]
    client = _Patient.from_url(parts._replace(query=urllib.parse.urlencode(rest)).geturl(), **options)
    try:
        client.ping()
    except TypeError as error:  # of an option that a connection does not take
        raise ValueError(f"Options of {shown} must be redis-py's or {', '.join(own)}: {error}.") from error
    except _REFUSED as error:
        rule = f"Redis at {shown} must know the user and password, of the URL or {PASSWORD}."
        raise ValueError(f"{rule} {error}") from error
    return client, {name: value for name, value in found if name in own}
